package keylock_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/armature-go/armature/internal/keylock"
)

func TestLocks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l keylock.Locks
		ctx := t.Context()
		if err := l.Lock(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		if err := l.Lock(ctx, "b"); err != nil { // does not wait for a
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []int
		for i := range 3 {
			go func() {
				if err := l.Lock(ctx, "a"); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				l.Unlock("a")
			}()
			synctest.Wait()
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := l.Lock(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock after the deadline: %v", err)
		}
		l.Unlock("a")
		synctest.Wait()
		if !slices.Equal(order, []int{0, 1, 2}) {
			t.Errorf("the goroutines that waited got the lock in the order %v", order)
		}
		if err := l.Lock(ctx, "a"); err != nil { // does not block: the lock is free again
			t.Error(err)
		}
		l.Unlock("a")
		l.Unlock("b")
	})
}

func TestUnlockOfAFreeKey(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("Unlock of a key that is not locked did not panic")
		}
	}()
	var l keylock.Locks
	l.Unlock("a")
}

// BenchmarkLock measures a lock that no other goroutine holds.
func BenchmarkLock(b *testing.B) {
	var l keylock.Locks
	for b.Loop() {
		if err := l.Lock(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
		l.Unlock("a")
	}
}

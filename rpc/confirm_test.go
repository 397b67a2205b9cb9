package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/rpc/rpctest"
)

// lateBus is a bus that accepts each copy of a message and each dead letter at once, but confirms them late, or loses
// the confirmation with the connection. Only a message without failed attempts is confirmed at once.
type lateBus struct {
	*membus.Bus
	late time.Duration // delay of each confirmation
	lose int           // how many confirmations are lost

	mu     sync.Mutex
	copies map[string]int // accepted copies by id, without dead letters
	total  int            // the number of all copies; copies beyond maxCopies are lost
}

// maxCopies limits the copies if a bug multiplies them.
const maxCopies = 1000

func (b *lateBus) Publish(ctx context.Context, topic string, m *rpcbus.Message) error {
	b.mu.Lock()
	b.total++
	full := b.total > maxCopies
	b.mu.Unlock()
	if full {
		return nil
	}
	if err := b.Bus.Publish(ctx, topic, m); err != nil {
		return err
	}
	b.mu.Lock()
	if topic != "backup.dlq" {
		b.copies[m.ID]++
	}
	first := m.Failures == 0
	lost := !first && b.lose > 0
	if lost {
		b.lose--
	}
	b.mu.Unlock()
	if first {
		return nil
	}
	late := time.NewTimer(b.late)
	defer late.Stop()
	select {
	case <-late.C:
	case <-ctx.Done():
		lost = true
	}
	if lost {
		return fault.New(fault.Unknown, "it may have been sent")
	}
	return nil
}

func (b *lateBus) Send(ctx context.Context, topic string, m *rpcbus.Message, done func(error)) {
	done(b.Publish(ctx, topic, m))
}

// deadLetters returns the number of dead letters of each message, and drops them.
func deadLetters(t *testing.T, bus rpcbus.Bus) map[string]int {
	t.Helper()
	letters := map[string]int{}
	if err := rpc.DeadLetters(t.Context(), bus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
		letters[l.ID]++
		return rpc.Drop
	}); err != nil {
		t.Fatal(err)
	}
	return letters
}

// TestLateConfirm: casts that fail are published again, over a bus that confirms late or loses confirmations. The casts
// do not multiply: each attempt runs once, and each message becomes one dead letter.
func TestLateConfirm(t *testing.T) {
	t.Parallel()
	const casts, attempts = 5, 5
	for _, tt := range []struct {
		name string
		late time.Duration
		lose int
	}{
		{"in time", time.Second, 0},
		{"after 12.5 s", 12500 * time.Millisecond, 0},
		{"after an hour", time.Hour, 0},
		{"three are lost", 12500 * time.Millisecond, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				bus := &lateBus{Bus: rpctest.NewBus(t), late: tt.late, lose: tt.lose, copies: make(map[string]int)}
				var mu sync.Mutex
				runs := 0
				startServer(t, bus, rpc.ServerConfig{MaxDeliveries: attempts}, func(context.Context, *string) (*rpc.None, error) {
					mu.Lock()
					defer mu.Unlock()
					runs++
					return nil, fault.New(fault.Exhausted, "not now")
				})
				for n := range casts {
					sendKeep(t, bus, fmt.Sprint("cast-", n))
				}
				pass(10 * time.Hour)
				bus.mu.Lock()
				total := 0
				for _, n := range bus.copies {
					total += n
				}
				bus.mu.Unlock()
				letters := deadLetters(t, bus)
				t.Logf("%d copies, %d runs, dead letters %v", total, runs, letters)
				if total > casts*attempts+tt.lose {
					t.Errorf("%d copies of %d casts with %d attempts, %d confirmations lost", total, casts, attempts, tt.lose)
				}
				if runs != casts*attempts {
					t.Errorf("%d runs, want %d: each attempt once", runs, casts*attempts)
				}
				for n := range casts {
					if got := letters[fmt.Sprint("cast-", n)]; got != 1 {
						t.Errorf("cast-%d has become %d dead letters, want 1", n, got)
					}
				}
			})
		})
	}
}

// TestStaleCopy: a message was published again, and its original is redelivered, because the acknowledgement of the
// original was lost. The original is not handled again with its old attempt counters, not even after the last attempt.
// A requeued dead letter starts with new counters.
func TestStaleCopy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		var mu sync.Mutex
		runs := 0
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return runs
		}
		startServer(t, bus, rpc.ServerConfig{MaxDeliveries: 4}, func(context.Context, *string) (*rpc.None, error) {
			mu.Lock()
			defer mu.Unlock()
			runs++
			return nil, fault.New(fault.Exhausted, "not now")
		})
		sendKeep(t, bus, "a")
		pass(50 * time.Millisecond)
		sendKeep(t, bus, "a") // while the message waits for its second attempt
		pass(time.Minute)
		sendKeep(t, bus, "a") // after the last attempt
		pass(time.Minute)
		if n := count(); n != 4 {
			t.Errorf("%d runs, want 4", n)
		}
		letters := 0
		if err := rpc.DeadLetters(t.Context(), bus, iface, func(*rpc.DeadLetter) rpc.Verdict {
			letters++
			return rpc.Requeue
		}); err != nil || letters != 1 {
			t.Errorf("%d dead letters, error %v; want 1", letters, err)
		}
		pass(time.Minute)
		if n := count(); n != 8 {
			t.Errorf("%d runs after the dead letter was requeued, want 8", n)
		}
		if got := deadLetters(t, bus); got["a"] != 1 {
			t.Errorf("dead letters %v, want 1", got)
		}
	})
}

// TestCopyOfARunningMessage: a second delivery of a message whose handler still runs does not count as the loss of a
// server, however often it comes.
func TestCopyOfARunningMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
			time.Sleep(20 * time.Minute) //nolint:forbidigo // in a synctest bubble
			return &rpc.None{}, nil
		})
		sendKeep(t, bus, "a")
		pass(time.Second)
		sendKeep(t, bus, "a")
		pass(time.Hour)
		if st := srv.Stats(); st.DeadLettered != 0 || st.Redelivered != 0 {
			t.Errorf("%+v, want no dead letter and no redelivery", st)
		}
	})
}

// TestNoID: messages without an id, from another program, do not count as copies of each other.
func TestNoID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		bus := rpctest.NewBus(t)
		var mu sync.Mutex
		runs := 0
		srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
			mu.Lock()
			defer mu.Unlock()
			runs++
			if runs == 1 {
				return nil, fault.New(fault.Exhausted, "not now")
			}
			return &rpc.None{}, nil
		})
		for range 3 {
			sendKeep(t, bus, "")
		}
		pass(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if st := srv.Stats(); runs != 4 || st.Duplicate != 0 {
			t.Errorf("%d runs, %+v; want 3 messages run, one of them twice", runs, st)
		}
	})
}

// TestLetterTruncated: a dead letter that the bus cannot carry is truncated once, and cannot be requeued.
func TestLetterTruncated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const most = 20 << 10
		bus := &faulty{Bus: rpctest.NewBus(t), meet: func(_ string, m *rpcbus.Message) (bool, error) {
			if m.Dead != nil && m.Size() > most {
				return false, fault.New(fault.Invalid, "%w: the broker accepts %d bytes", rpc.ErrTooLarge, most)
			}
			return true, nil
		}}
		runs := 0
		srv := startServer(t, bus, rpc.ServerConfig{}, func(context.Context, *string) (*rpc.None, error) {
			runs++
			return nil, fault.New(fault.Conflict, "no use %s", strings.Repeat("\u00e9", most))
		})
		m := rpctest.Message("a", "cast backup.keep 2.0 at-least-once", `"`+strings.Repeat("x", most-300)+`"`)
		m.Header = map[string]string{"more": strings.Repeat("m", 60<<10)}
		if err := bus.Publish(t.Context(), "backup", m); err != nil {
			t.Fatal(err)
		}
		pass(time.Hour)
		if st := srv.Stats(); runs != 1 || st.DeadLettered != 1 {
			t.Errorf("%d runs, %+v; want one run and one dead letter", runs, st)
		}
		show := func(verdict rpc.Verdict) error {
			return rpc.DeadLetters(t.Context(), bus, iface, func(l *rpc.DeadLetter) rpc.Verdict {
				if l.ID != "a" || l.Info.Method != "keep" || l.Topic != "backup" || !utf8.ValidString(l.Reason) || !strings.HasPrefix(l.Reason, "Conflict: no use") ||
					l.Metadata["truncated"] != strconv.Itoa(most-298) || len(l.Payload) == 0 {
					t.Errorf("dead letter %s of %s, %d bytes, truncated %q, reason %.40q", l.ID, l.Topic, len(l.Payload), l.Metadata["truncated"], l.Reason)
				}
				return verdict
			})
		}
		if err := show(rpc.Requeue); !errors.Is(err, fault.Precondition) {
			t.Errorf("requeue of a truncated dead letter: %v, want Precondition", err)
		}
		if err := show(rpc.Drop); err != nil {
			t.Error(err)
		}
	})
}

package driver_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// TestReplaceStorm replaces the program 50 times within a second, while calls run and the file changes. No call fails, at most two
// programs run at a time, and afterwards the last file runs.
func TestReplaceStorm(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, false, nil)
		stop := r.callers()
		var wg sync.WaitGroup
		most := 0
		for i := range 50 {
			if i%10 == 0 {
				r.install("good", false)
			}
			cfg := r.cfg
			cfg.Options = options(t, r.o)
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				if err := r.p.Replace(ctx, cfg, nil); err != nil {
					t.Errorf("replacement %d: %v", i, err)
				}
			})
			left, err := os.ReadDir(r.cfg.SocketDir)
			if most = max(most, len(left)); err != nil {
				t.Error(err)
			}
			waittest.Spend(20*time.Millisecond, "the time between two replacements")
		}
		wg.Wait()
		if st := r.p.Status(); st.State != driver.Up || st.Restarts != 0 || st.Replacements < 1 || most > 2 {
			t.Errorf("%+v, up to %d programs at a time", st, most)
		}
		before := r.p.Status().Replacements
		if err := r.replace(r.o); err != nil || r.p.Status().Replacements > before+1 {
			t.Errorf("the last configuration: %v, %+v", err, r.p.Status())
		}
		stop()
		r.awaitOne()
	})
}

// TestReplaceHung: the running program hangs in a call. The replacement waits for the end of the calls. The hung program is killed, as it
// would be without a replacement, and the new program starts.
func TestReplaceHung(t *testing.T) {
	t.Parallel()
	r := startReplaceable(t, false, false, func(cfg *driver.PluginConfig) {
		*cfg = quick(*cfg)
		cfg.PingEvery, cfg.PingTimeout = 20*time.Millisecond, 100*time.Millisecond
	})
	old := r.p.Status().PID
	call := make(chan error, 1)
	go func() {
		_, err := r.p.Driver().Echo(t.Context(), "sleep:1h")
		call <- err
	}()
	waittest.Until(t, "the call", exists(r.o.Dir, "asleep"))
	r.install("good", false)
	replaced, began := make(chan error, 1), time.Now()
	go func() { replaced <- r.replace(r.o) }()
	waittest.Until(t, "the wait for the calls", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := r.p.Driver().Echo(ctx, "x")
		return err != nil && strings.Contains(err.Error(), "wait for the replacement")
	})
	if err := syscall.Kill(old, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := <-replaced; err != nil || time.Since(began) > 8*time.Second || r.p.Status().PID == old {
		t.Errorf("the replacement: %v after %v, %+v", err, time.Since(began), r.p.Status())
	}
	if err := <-call; fault.CodeOf(err) != fault.Unknown {
		t.Errorf("the call in the program that hung: %v, want Unknown", err)
	}
	r.awaitOne()
}

// TestReplaceHangingStart: the program is down, and hangs when it is started again. A replacement does not wait for the end of that start.
func TestReplaceHangingStart(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, false, func(cfg *driver.PluginConfig) { *cfg = quick(*cfg) })
		started := filepath.Join(r.o.Dir, "started")
		r.install("touch "+started+"; exec sleep 1000", false)
		if err := syscall.Kill(r.p.Status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waittest.Until(t, "the start that hangs", exists(r.o.Dir, "started"))
		r.install("good", false)
		began := time.Now()
		if err := r.replace(r.o); err != nil || time.Since(began) > 15*time.Second || r.p.Status().State != driver.Up {
			t.Errorf("%v after %v, %+v", err, time.Since(began), r.p.Status())
		}
		r.awaitOne()
	})
}

// TestReplaceClosed: the program that was replaced does not end. When the context of Close ends, that program is killed, and Close does not
// wait longer.
func TestReplaceClosed(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, false, nil)
		old := r.p.Status().PID
		r.install("good", false)
		o := r.o
		if concurrent { // the old program stops just before it is told to end
			o.Gate = filepath.Join(o.Dir, "gate")
		}
		replaced := make(chan error, 1)
		stopOld := func() {
			if err := syscall.Kill(old, syscall.SIGSTOP); err != nil {
				t.Error(err)
			}
		}
		if !concurrent { // the old program has one call, and stops after the call
			go func() { _, _ = r.p.Driver().Echo(t.Context(), "sleep:300ms") }() // may fail
			waittest.Until(t, "the call", exists(r.o.Dir, "asleep"))
		}
		go func() { replaced <- r.replace(o) }()
		if concurrent {
			waittest.Until(t, "Open of the new program", exists(o.Dir, "gate.pid"))
			stopOld()
			if err := os.WriteFile(o.Gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := <-replaced; err != nil && !strings.Contains(err.Error(), "Info") {
				t.Fatal(err)
			}
		} else {
			stopOld()
			waittest.Pass(t, 200*time.Millisecond, "the replacement waits")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		err := r.p.Close(ctx)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("close: %v after %v", err, took)
		}
		if !concurrent {
			if err := <-replaced; err == nil {
				t.Error("the replacement has succeeded")
			}
		}
		waittest.Until(t, "the end of the old program", func() bool { return !runs(old) })
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("the old program ran for another %v", took)
		}
	})
}

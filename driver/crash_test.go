package driver_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
)

// TestCrash: a call during which the program ends fails with Unknown, and the same
// driver works after the restart.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := launchPlugin(t, driver.PluginConfig{Options: options(t, echoOptions{Dir: dir})})
	d := p.Driver()
	for i, ask := range []string{"exit:3", "crash", "kill"} {
		before := p.Status()
		var err error
		if ask == "kill" {
			got := make(chan error, 1)
			go func() {
				_, err := d.Echo(t.Context(), "sleep:1h")
				got <- err
			}()
			waittest.Until(t, "the call to reach the program", exists(dir, "asleep"))
			if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			err = <-got
		} else {
			_, err = d.Echo(t.Context(), ask)
		}
		if fault.CodeOf(err) != fault.Unknown || fault.IsRemote(err) || !strings.Contains(err.Error(), "driver good: its program was lost during Echo") {
			t.Errorf("%s: %v: %v, want Unknown", ask, fault.CodeOf(err), err)
		}
		waittest.Until(t, "the restart", func() bool { return p.Status().Restarts == i+1 && up(p)() })
		if got, err := d.Echo(t.Context(), "again"); got != "again" || err != nil {
			t.Errorf("after %s: %q, %v", ask, got, err)
		}
		st := p.Status()
		if st.PID == before.PID || st.Err == nil {
			t.Errorf("status after %s: %+v", ask, st)
		}
		want := map[string]string{"exit:3": "it ended: exit status 3", "crash": "panic: crash", "kill": "it ended: signal: killed"}[ask]
		if !strings.Contains(st.Err.Error(), want) {
			t.Errorf("after %s the error is %v, want %q in it", ask, st.Err, want)
		}
	}
}

// TestShortCrashWindow: the crash that has just happened counts, however short CrashWindow is.
func TestShortCrashWindow(t *testing.T) {
	t.Parallel()
	p := launchPlugin(t, quick(driver.PluginConfig{CrashWindow: time.Nanosecond}))
	for i := range 2 {
		if _, err := p.Driver().Echo(t.Context(), "crash"); fault.CodeOf(err) != fault.Unknown {
			t.Errorf("crash: %v", err)
		}
		waittest.Until(t, "the restart", func() bool { return p.Status().Restarts == i+1 && up(p)() })
	}
}

// TestDown: while the program is down, calls fail at once with Unavailable, and Check
// returns the reason. After too many crashes the program is restarted only after Cooldown.
func TestDown(t *testing.T) {
	t.Parallel()
	for what, says := range map[string]string{"crash": "panic: Open wants to crash", "fail": "the array cannot be reached"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), what)
			o := echoOptions{Crash: file}
			if what == "fail" {
				o = echoOptions{Fail: file}
			}
			p := launchPlugin(t, driver.PluginConfig{
				Options:  options(t, o),
				MinDelay: time.Millisecond, MaxDelay: time.Millisecond, MaxCrashes: 3, Cooldown: time.Second,
			})
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(p.Status().PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			waittest.Until(t, "the state Broken", func() bool { return p.Status().State == driver.Broken })
			_, err := p.Driver().Echo(t.Context(), "x")
			if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "crashed more than 3 times within 1m0s, and is restarted in ") {
				t.Errorf("a call: %v: %v; want Unavailable with %q", fault.CodeOf(err), err, says)
			}
			if got := p.Check(t.Context()); fault.CodeOf(got) != fault.Unavailable || !strings.Contains(got.Error(), says) {
				t.Errorf("check: %v", got)
			}
			if st := p.Status(); st.PID != 0 || !st.Next.After(st.Since) {
				t.Errorf("status %+v", st)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			waittest.Until(t, "the next restart", up(p))
			if err := p.Check(t.Context()); err != nil {
				t.Errorf("check when it is up: %v", err)
			}
		})
	}
}

// TestHang: a program without heartbeats is killed and restarted.
func TestHang(t *testing.T) {
	t.Parallel()
	cfg := quick(driver.PluginConfig{PingEvery: 20 * time.Millisecond, PingTimeout: 500 * time.Millisecond})
	p := launchPlugin(t, cfg)
	_, err := p.Driver().Echo(t.Context(), "stopped")
	if fault.CodeOf(err) != fault.Unknown {
		t.Errorf("the call that hung: %v", err)
	}
	waittest.Until(t, "the restart", func() bool { return p.Status().Restarts == 1 && up(p)() })
	if err := p.Status().Err; err == nil || !strings.Contains(err.Error(), "it was killed because it hung: no heartbeat within 500ms") {
		t.Errorf("status: %v", err)
	}
	if _, err := p.Driver().Echo(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// stopped reports whether every thread of a process has stopped. SIGSTOP takes effect with a delay.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return len(threads) > 0 && !slices.ContainsFunc(threads, func(file string) bool {
		raw, err := os.ReadFile(file)
		_, state, _ := strings.Cut(string(raw), ") ")
		return err == nil && !strings.HasPrefix(state, "T")
	})
}

// TestCloseOfHung: a program that hangs is killed when the context of Close ends.
func TestCloseOfHung(t *testing.T) {
	t.Parallel()
	p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: installPrograms(t, "good")})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.Status().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waittest.Until(t, "every thread to be stopped", func() bool { return stopped(pid) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); fault.CodeOf(err) != fault.Timeout {
		t.Errorf("close: %v", err)
	}
	if runs(pid) {
		t.Errorf("process %d still runs", pid)
	}
}

// TestRestartsUnderLoad: 64 callers call a program that is killed 20 times. No call hangs, and each error tells
// whether the call may have been executed. At the end no process and no directory is left; goleak checks the
// goroutines.
func TestRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	sockets := socketDir(t)
	p := launchPlugin(t, quick(driver.PluginConfig{SocketDir: sockets, Program: "good", Dir: installPrograms(t, "good")}))
	const callers, calls, kills = 64, 10_000, 20
	var next, ok, unknown, unavailable atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range callers {
		wg.Go(func() {
			for n := next.Add(1); ; n = next.Add(1) {
				select {
				case <-stop:
					if n > calls {
						return
					}
				default:
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				ask := strconv.FormatInt(n, 10)
				got, err := p.Driver().Echo(ctx, ask)
				cancel()
				switch fault.CodeOf(err) {
				case fault.Unknown:
					unknown.Add(1)
				case fault.Unavailable:
					unavailable.Add(1)
					select {
					case <-time.After(time.Millisecond):
					case <-t.Context().Done():
					}
				default:
					if err != nil || got != ask {
						t.Errorf("call %s: %q, %v", ask, got, err)
						continue
					}
					ok.Add(1)
				}
			}
		})
	}
	var pids []int
	for range kills {
		waittest.Until(t, "the program", up(p))
		pid := p.Status().PID
		pids = append(pids, pid)
		select {
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
		case <-t.Context().Done():
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		waittest.Until(t, "the end", func() bool { return p.Status().PID != pid })
	}
	waittest.Until(t, "the program", up(p))
	close(stop)
	wg.Wait()
	t.Logf("%d calls succeeded, %d unknown, %d unavailable", ok.Load(), unknown.Load(), unavailable.Load())
	if ok.Load() == 0 || unknown.Load()+unavailable.Load() == 0 {
		t.Error("no call succeeded, or no call failed")
	}
	if n := p.Status().Restarts; n != kills {
		t.Errorf("%d restarts, want %d", n, kills)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		if runs(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if left, err := os.ReadDir(sockets); err != nil || len(left) > 0 {
		t.Errorf("sockets are left: %v, %v", left, err)
	}
}

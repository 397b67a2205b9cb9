package driver_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
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

// replaceable is a driver whose program a test replaces.
type replaceable struct {
	t       *testing.T
	cfg     driver.PluginConfig
	o       echoOptions
	p       *driver.Plugin[echoer]
	path    string
	program string // the program that the script executes
	log     *logBuffer
}

// startReplaceable starts a program that is a script, which install can change. If concurrent is false, the driver has a
// lock.
func startReplaceable(t *testing.T, concurrent, pinned bool, change func(cfg *driver.PluginConfig)) *replaceable {
	t.Helper()
	dir := t.TempDir()
	r := &replaceable{t: t, o: echoOptions{Dir: dir, Concurrent: concurrent}, log: new(logBuffer)}
	if !concurrent {
		r.o.Lock = filepath.Join(dir, "lock")
	}
	r.program = filepath.Join(installPrograms(t, "good", "old", "new"), "armature-echo-")
	r.cfg = driver.PluginConfig{Program: "script", Dir: t.TempDir(), SocketDir: socketDir(t), Env: raceEnv, Logger: slog.New(slog.NewTextHandler(r.log, nil))}
	r.path = filepath.Join(r.cfg.Dir, "armature-echo-script")
	r.install("good", pinned)
	if change != nil {
		change(&r.cfg)
	}
	r.cfg.Options = options(t, r.o)
	r.p = launchPlugin(t, r.cfg)
	return r
}

// install replaces the file of the program by a script. The script executes the program armature-echo-NAME, or name
// itself if name is a shell command with a space.
func (r *replaceable) install(name string, pinned bool) {
	r.t.Helper()
	r.o.Serial++
	text := fmt.Sprintf("#!/bin/sh\n# %d\nexec %s%s\n", r.o.Serial, r.program, name)
	if strings.Contains(name, " ") {
		text = fmt.Sprintf("#!/bin/sh\n# %d\n%s\n", r.o.Serial, name)
	}
	if err := errors.Join(writeProgram(r.path+".new", []byte(text), 0o700), os.Rename(r.path+".new", r.path)); err != nil {
		r.t.Fatal(err)
	}
	r.cfg.SHA256 = ""
	if pinned {
		sum := sha256.Sum256([]byte(text))
		r.cfg.SHA256 = hex.EncodeToString(sum[:])
	}
}

// writeProgram writes a program. Meanwhile no goroutine starts a process, because the new process would have the file open for writing for a
// moment, and the kernel executes no such file.
func writeProgram(path string, text []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, text, mode)
}

// replace replaces the program. The new program gets the options o.
func (r *replaceable) replace(o echoOptions) error {
	r.t.Helper()
	cfg := r.cfg
	cfg.Options = options(r.t, o)
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	return r.p.Replace(ctx, cfg, nil)
}

// awaitOne waits until one program is left.
func (r *replaceable) awaitOne() {
	r.t.Helper()
	waittest.Until(r.t, "the end of the other programs", func() bool {
		left, err := os.ReadDir(r.cfg.SocketDir)
		return err == nil && len(left) == 1
	})
}

// callers calls the driver from four goroutines, each about 200 times a second. More calls would leave no time to the
// programs that start. The returned function ends the calls and checks that each was executed by exactly one program. It
// returns the ids of the programs, and how many calls failed with the accepted codes.
func (r *replaceable) callers(accept ...fault.Code) func() (pids []int, failed int) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	ran, lost, refused := map[string]string{}, map[string]bool{}, atomic.Int64{}
	for c := range 4 {
		wg.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for i := 0; ctx.Err() == nil; i++ {
				<-pace.C
				id := fmt.Sprintf("%d-%d", c, i)
				pid, err := r.p.Driver().Echo(context.WithoutCancel(ctx), "append:"+id)
				mu.Lock()
				switch {
				case err == nil:
					ran[id] = pid
				case slices.Contains(accept, fault.CodeOf(err)):
					refused.Add(1)
					lost[id] = fault.CodeOf(err) == fault.Unknown
				default:
					r.t.Errorf("call %s: %v: %v", id, fault.CodeOf(err), err)
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	return func() ([]int, int) {
		r.t.Helper()
		cancel()
		wg.Wait()
		raw, err := os.ReadFile(filepath.Join(r.o.Dir, "calls"))
		if err != nil {
			r.t.Fatal(err)
		}
		var pids []int
		for line := range strings.Lines(string(raw)) {
			id, pid, _ := strings.Cut(strings.TrimSpace(line), " ")
			if ran[id] != pid && !lost[id] {
				r.t.Errorf("call %s ran in process %s, but its answer came from %q", id, pid, ran[id])
			}
			delete(ran, id)
			if n, err := strconv.Atoi(pid); err == nil && !slices.Contains(pids, n) {
				pids = append(pids, n)
			}
		}
		if len(ran) > 0 {
			r.t.Errorf("%d calls were answered and not executed", len(ran))
		}
		return pids, int(refused.Load())
	}
}

// each runs a test with a driver that is concurrent, and with one that has a lock.
func each(t *testing.T, f func(t *testing.T, concurrent bool)) {
	t.Helper()
	for _, concurrent := range []bool{true, false} {
		t.Run(fmt.Sprintf("concurrent=%v", concurrent), func(t *testing.T) {
			t.Parallel()
			f(t, concurrent)
		})
	}
}

// TestReplace replaces the program ten times while calls run. No call fails, and each call runs in exactly one program. A
// replacement without a change starts nothing.
func TestReplace(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, true, nil)
		stop := r.callers()
		for i := range 10 {
			r.install("good", i%3 != 1) // with and without a checksum
			before := r.p.Status()
			for range 2 {
				if err := r.replace(r.o); err != nil {
					t.Fatal(err)
				}
				if st := r.p.Status(); st.Replacements != i+1 || st.Restarts != 0 || st.State != driver.Up || st.PID == before.PID {
					t.Errorf("replacement %d: %+v, before it %+v", i+1, st, before)
				}
			}
			waittest.Until(t, "a call in the new program", func() bool {
				raw, err := os.ReadFile(filepath.Join(r.o.Dir, "calls"))
				return err == nil && strings.Contains(string(raw), fmt.Sprintf(" %d\n", r.p.Status().PID))
			})
		}
		if pids, _ := stop(); len(pids) < 10 {
			t.Errorf("the calls ran in %d programs, want 10 or 11", len(pids))
		}
		r.awaitOne()
		waittest.Until(t, "the last line", func() bool { return r.log.count("replaced driver program ended") == 10 })
		if replaced, ended := r.log.count("driver program replaced"), r.log.count("replaced driver program ended"); replaced != 10 || ended != 10 || r.log.count("level=WARN") > 0 {
			t.Errorf("%d replacements and %d ends in the log, want 10 and 10, and no warning", replaced, ended)
		}
	})
}

// TestReplaceRefused: a new program that is refused changes nothing. The error has the reason, and no call fails.
func TestReplaceRefused(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, true, nil)
		good, goodCfg := r.o, r.cfg
		stop := r.callers()
		for _, tt := range []struct {
			install string
			change  func(o *echoOptions, cfg *driver.PluginConfig)
			check   error
			code    fault.Code
			says    string
		}{
			{"good", func(_ *echoOptions, cfg *driver.PluginConfig) { cfg.SHA256 = goodCfg.SHA256 }, nil, fault.Denied, "has the SHA-256"},
			{"good", func(_ *echoOptions, cfg *driver.PluginConfig) { cfg.SHA256 = "abc" }, nil, fault.Invalid, "plugin_sha256"},
			{"good", func(_ *echoOptions, cfg *driver.PluginConfig) { cfg.Program = "none" }, nil, fault.NotFound, "is missing"},
			{"echo no library >&2; exit 7", nil, nil, fault.Internal, "no library"},
			{"new", nil, nil, fault.Invalid, "protocol 4"},
			{"exec sleep 1000", func(_ *echoOptions, cfg *driver.PluginConfig) { cfg.StartTimeout = 200 * time.Millisecond }, nil, fault.Timeout, "did not start in time"},
			{"good", func(o *echoOptions, _ *driver.PluginConfig) { o.Color = "red" }, nil, fault.Invalid, "color"},
			{"good", func(o *echoOptions, _ *driver.PluginConfig) { o.Crash = r.path }, nil, fault.Internal, "Open wants to crash"},
			{"good", func(o *echoOptions, _ *driver.PluginConfig) { o.Lacks = true }, nil, fault.Precondition, "the capability count"},
			{"good", nil, fault.New(fault.Unavailable, "the array is away"), fault.Unavailable, "the array is away"},
		} {
			r.install(tt.install, true)
			o, cfg := r.o, r.cfg
			if tt.change != nil {
				tt.change(&o, &cfg)
			}
			cfg.Options = options(t, o)
			err := r.p.Replace(t.Context(), cfg, func(ctx context.Context, d echoer) error {
				if got, err := d.Echo(ctx, "pid"); err != nil || got == strconv.Itoa(r.p.Status().PID) {
					t.Errorf("check: %q, %v", got, err)
				}
				return tt.check
			})
			if err == nil || fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "armature-echo-") && tt.says != "plugin_sha256" || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v: %v, want %v", tt.says, fault.CodeOf(err), err, tt.code)
			}
			if st := r.p.Status(); st.State != driver.Up || st.Replacements != 0 || concurrent && st.Restarts != 0 {
				t.Errorf("%s: %+v", tt.says, st)
			}
		}
		stop()
		r.awaitOne()
		r.o, r.cfg = good, goodCfg
		r.o.Serial = 100
		r.install("good", true)
		if err := r.replace(r.o); err != nil {
			t.Errorf("a good program afterwards: %v", err)
		}
	})
}

// TestReplaceDrain: calls on a replaced program end there. After DrainTimeout streams are canceled, and calls fail with Unknown.
func TestReplaceDrain(t *testing.T) {
	t.Parallel()
	for _, long := range []bool{false, true} {
		t.Run(fmt.Sprintf("long=%v", long), func(t *testing.T) {
			t.Parallel()
			r := startReplaceable(t, true, false, func(cfg *driver.PluginConfig) {
				if long {
					cfg.DrainTimeout = 200 * time.Millisecond
				}
			})
			old := r.p.Status().PID
			call, stream, streams := make(chan error, 1), make(chan error, 1), make(chan struct{})
			go func() {
				_, err := r.p.Driver().Echo(t.Context(), "sleep:"+map[bool]string{true: "1h", false: "500ms"}[long])
				call <- err
			}()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				stream <- r.p.Driver().Count(ctx, 100, func(i int) error {
					if i == 99 {
						close(streams)
					}
					return nil
				})
			}()
			<-streams
			waittest.Until(t, "the call", exists(r.o.Dir, "asleep"))
			r.install("good", false)
			if err := r.replace(r.o); err != nil {
				t.Fatal(err)
			}
			if got, err := r.p.Driver().Echo(t.Context(), "pid"); err != nil || got == strconv.Itoa(old) || !runs(old) {
				t.Errorf("after the replacement process %q answers, %v; the old one is %d, runs: %v", got, err, old, runs(old))
			}
			callErr := <-call
			if !long {
				cancel()
			}
			streamErr := <-stream
			if want := map[bool]fault.Code{true: fault.Unknown}[long]; long && fault.CodeOf(callErr) != want || !long && callErr != nil {
				t.Errorf("the call: %v", callErr)
			}
			if fault.CodeOf(streamErr) != fault.Canceled || long && !strings.Contains(streamErr.Error(), "its program was replaced") {
				t.Errorf("the stream: %v", streamErr)
			}
			r.awaitOne()
			if runs(old) || r.p.Status().Restarts != 0 {
				t.Errorf("the old program runs: %v, %+v", runs(old), r.p.Status())
			}
		})
	}
}

// TestReplaceBusy: a driver that is not concurrent is not replaced while a call runs for too long. The call continues.
func TestReplaceBusy(t *testing.T) {
	t.Parallel()
	r := startReplaceable(t, false, false, func(cfg *driver.PluginConfig) { cfg.DrainTimeout = 100 * time.Millisecond })
	old := r.p.Status().PID
	call := make(chan error, 1)
	go func() {
		_, err := r.p.Driver().Echo(t.Context(), "sleep:1s")
		call <- err
	}()
	waittest.Until(t, "the call", exists(r.o.Dir, "asleep"))
	r.install("good", false)
	if err := r.replace(r.o); fault.CodeOf(err) != fault.Timeout || !strings.Contains(err.Error(), "try again") {
		t.Errorf("replace: %v", err)
	}
	if err := <-call; err != nil || r.p.Status().PID != old {
		t.Errorf("the call: %v; %+v", err, r.p.Status())
	}
	if err := r.replace(r.o); err != nil || r.p.Status().PID == old {
		t.Errorf("replace again: %v, %+v", err, r.p.Status())
	}
}

// TestReplaceKilled: one of the two programs is killed at a point of a replacement. Afterwards the driver works, and one
// program is left.
func TestReplaceKilled(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		for _, point := range []string{"new opens", "old while new opens", "old drains", "new after the switch"} {
			if point == "old drains" && !concurrent {
				continue
			}
			t.Run(point, func(t *testing.T) {
				t.Parallel()
				r := startReplaceable(t, concurrent, true, func(cfg *driver.PluginConfig) { *cfg = quick(*cfg) })
				stop := r.callers(fault.Unavailable, fault.Unknown)
				old := r.p.Status().PID
				slow := make(chan error, 1)
				if point == "old drains" {
					go func() {
						_, err := r.p.Driver().Echo(t.Context(), "sleep:1h")
						slow <- err
					}()
					waittest.Until(t, "the call", exists(r.o.Dir, "asleep"))
				}
				r.install("good", true)
				o := r.o
				o.Gate = filepath.Join(o.Dir, "gate")
				replaced := make(chan error, 1)
				go func() { replaced <- r.replace(o) }()
				waittest.Until(t, "Open of the new program", exists(o.Dir, "gate.pid"))
				raw, err := os.ReadFile(o.Gate + ".pid")
				if err != nil {
					t.Fatal(err)
				}
				pid, _ := strconv.Atoi(string(raw))
				kill := func(pid int) {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && (concurrent || !errors.Is(err, syscall.ESRCH)) {
						t.Error(err)
					}
				}
				switch point {
				case "new opens":
					kill(pid)
				case "old while new opens":
					kill(old)
				}
				if err := os.WriteFile(o.Gate, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				err = <-replaced
				switch point {
				case "new opens":
					if err == nil || !strings.Contains(err.Error(), "lost during Open") || r.p.Status().Replacements != 0 {
						t.Errorf("%v, %+v", err, r.p.Status())
					}
				case "old drains":
					kill(old)
					if err := <-slow; fault.CodeOf(err) != fault.Unknown {
						t.Errorf("the call on the old program: %v", err)
					}
				case "new after the switch":
					kill(pid)
					waittest.Until(t, "the restart", func() bool { return r.p.Status().Restarts == 1 && up(r.p)() })
				}
				if st := r.p.Status(); point != "new opens" && (err != nil || st.Replacements != 1) || point == "old drains" && (st.Restarts != 0 || st.PID != pid) {
					t.Errorf("%v, %+v", err, st)
				}
				waittest.Until(t, "the driver", func() bool { return r.p.Check(t.Context()) == nil })
				if _, err := r.p.Driver().Echo(t.Context(), "x"); err != nil {
					t.Error(err)
				}
				r.awaitOne()
				_, failed := stop()
				if concurrent && point == "new opens" && failed > 0 {
					t.Errorf("%d calls failed", failed)
				}
			})
		}
	})
}

// TestReplaceDown: a program that is down, or that was refused, is replaced at once, without the wait for its next start.
func TestReplaceDown(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		for _, state := range []driver.State{driver.Broken, driver.Refused} {
			t.Run(string(state), func(t *testing.T) {
				t.Parallel()
				r := startReplaceable(t, concurrent, state == driver.Refused, func(cfg *driver.PluginConfig) {
					cfg.MaxCrashes, cfg.MinDelay, cfg.MaxDelay, cfg.Cooldown = 1, time.Millisecond, time.Hour, time.Hour
				})
				if state == driver.Refused { // the new file is installed, but the configuration does not have its checksum yet
					r.install("good", true)
				} else if err := writeProgram(r.path, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(r.p.Status().PID, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				waittest.Until(t, "the state", func() bool { return r.p.Status().State == state })
				bad := r.o
				bad.Color = "red"
				if err := r.replace(bad); err == nil || r.p.Status().State == driver.Up {
					t.Errorf("a wrong program: %v, %+v", err, r.p.Status())
				}
				r.install("good", true)
				if err := r.replace(r.o); err != nil {
					t.Fatal(err)
				}
				if st := r.p.Status(); st.State != driver.Up || st.Replacements != 1 || st.Restarts != 0 {
					t.Errorf("%+v", st)
				}
				if _, err := r.p.Driver().Echo(t.Context(), "x"); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestReplaceTwice: of three equal replacements at once, one starts a program. Close ends a replacement and leaves no
// process.
func TestReplaceTwice(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, false, nil)
		r.install("good", false)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := r.replace(r.o); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if st := r.p.Status(); st.Replacements != 1 {
			t.Errorf("%+v", st)
		}
		r.install("good", false)
		o := r.o
		o.Gate = filepath.Join(o.Dir, "gate")
		replaced := make(chan error, 1)
		go func() { replaced <- r.replace(o) }()
		waittest.Until(t, "Open of the new program", exists(o.Dir, "gate.pid"))
		if err := r.p.Close(t.Context()); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-replaced; err == nil || fault.CodeOf(err) != fault.Canceled {
			t.Errorf("the replacement: %v", err)
		}
		if left, err := os.ReadDir(r.cfg.SocketDir); len(left) > 0 || err != nil {
			t.Errorf("left: %v, %v", left, err)
		}
		if err := r.replace(r.o); fault.CodeOf(err) != fault.Precondition {
			t.Errorf("after close: %v", err)
		}
	})
}

// TestReplaceProtocol: the new program may have another protocol that the worker supports. Driver returns a driver of the new
// protocol, and calls of an earlier driver fail with Unavailable: they are not executed.
func TestReplaceProtocol(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, concurrent bool) {
		r := startReplaceable(t, concurrent, false, nil)
		before := r.p.Driver()
		for protocol, name := range map[int]string{2: "old", 3: "good"} {
			r.install(name, false)
			if err := r.replace(r.o); err != nil {
				t.Fatal(err)
			}
			if c, ok := r.p.Driver().(*echoClient); !ok || c.protocol != protocol || r.p.Status().Protocol != protocol {
				t.Errorf("the driver of protocol %d is %+v", protocol, r.p.Driver())
			}
			if got, err := r.p.Driver().Echo(t.Context(), "x"); got != "x" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			if _, err := before.Echo(t.Context(), "x"); protocol == 2 && fault.CodeOf(err) != fault.Unavailable {
				t.Errorf("a call of protocol 3 to a program of protocol 2: %v", err)
			}
		}
	})
}

// TestReplaceBuiltIn: a driver in this process is not replaced.
func TestReplaceBuiltIn(t *testing.T) {
	t.Parallel()
	var drivers driver.Registry[echoer]
	drivers.Add("inside", openEcho)
	p, err := drivers.New(echoKind, "inside", driver.PluginConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Replace(t.Context(), driver.PluginConfig{}, nil); fault.CodeOf(err) != fault.Precondition {
		t.Errorf("before the start: %v", err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Replace(t.Context(), driver.PluginConfig{}, nil); err != nil {
		t.Errorf("the same options: %v", err)
	}
	if err := p.Replace(t.Context(), driver.PluginConfig{Options: json.RawMessage(`{"dir":"/x"}`)}, nil); fault.CodeOf(err) != fault.Precondition {
		t.Errorf("other options: %v", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

package driver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
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
)

// wait waits until something is so. What it waits for happens in another process.
func wait(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-t.Context().Done():
		}
	}
}

func exists(dir, name string) func() bool {
	return func() bool {
		_, err := os.Stat(filepath.Join(dir, name))
		return err == nil
	}
}

// socketDir is a directory with a short name, as sockets need it.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") //nolint:usetesting // its names are long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// runs reports whether a process is there, and not a zombie.
func runs(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(raw), ") ")
	return !strings.HasPrefix(state, "Z")
}

// quick makes a plugin restart soon, however often it crashes.
func quick(cfg driver.PluginConfig) driver.PluginConfig {
	cfg.MinDelay, cfg.MaxDelay, cfg.MaxCrashes = time.Millisecond, 5*time.Millisecond, 1000
	return cfg
}

func up(p *driver.Plugin[echoer]) func() bool {
	return func() bool { return p.Status().State == driver.Up }
}

// TestCrash: a call in whose middle the program ends is Unknown, and the same
// driver works again soon.
func TestCrash(t *testing.T) {
	t.Parallel()
	p := launch(t, driver.PluginConfig{})
	d := p.Driver()
	for i, ask := range []string{"exit:3", "crash", "kill"} {
		before := p.Status()
		var err error
		if ask == "kill" {
			got := make(chan error)
			go func() {
				_, err := d.Echo(t.Context(), "sleep:1h")
				got <- err
			}()
			time.AfterFunc(20*time.Millisecond, func() { _ = syscall.Kill(before.PID, syscall.SIGKILL) })
			err = <-got
		} else {
			_, err = d.Echo(t.Context(), ask)
		}
		if fault.CodeOf(err) != fault.Unknown || fault.IsRemote(err) || !strings.Contains(err.Error(), "driver good: its program was lost in the middle of Echo") {
			t.Errorf("%s: %v: %v, want Unknown", ask, fault.CodeOf(err), err)
		}
		wait(t, "the restart", func() bool { return p.Status().Restarts == i+1 && up(p)() })
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

// TestDown: while there is no program calls fail at once as not executed, and Check
// says why; when it crashes too often it is left alone for a while.
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
			p := launch(t, driver.PluginConfig{
				Options:  options(t, o),
				MinDelay: time.Millisecond, MaxDelay: time.Millisecond, MaxCrashes: 3, Cooldown: time.Second,
			})
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(p.Status().PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			wait(t, "the circuit", func() bool { return p.Status().State == driver.Broken })
			_, err := p.Driver().Echo(t.Context(), "x")
			if fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "crashed more than 3 times within 1m0s, and is tried again in ") {
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
			wait(t, "the next try", up(p))
			if err := p.Check(t.Context()); err != nil {
				t.Errorf("check when it is up: %v", err)
			}
		})
	}
}

// TestHang: a program that gives no sign of life is killed and restarted.
func TestHang(t *testing.T) {
	t.Parallel()
	cfg := quick(driver.PluginConfig{PingEvery: 20 * time.Millisecond, PingTimeout: 500 * time.Millisecond})
	p := launch(t, cfg)
	_, err := p.Driver().Echo(t.Context(), "stopped")
	if fault.CodeOf(err) != fault.Unknown {
		t.Errorf("the call that hung: %v", err)
	}
	wait(t, "the restart", func() bool { return p.Status().Restarts == 1 && up(p)() })
	if err := p.Status().Err; err == nil || !strings.Contains(err.Error(), "it hung: no sign of life within 500ms") {
		t.Errorf("status: %v", err)
	}
	if _, err := p.Driver().Echo(t.Context(), "x"); err != nil {
		t.Error(err)
	}
}

// stopped reports whether every thread of a process is: SIGSTOP takes effect late.
func stopped(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	return len(threads) > 0 && !slices.ContainsFunc(threads, func(file string) bool {
		raw, err := os.ReadFile(file)
		_, state, _ := strings.Cut(string(raw), ") ")
		return err == nil && !strings.HasPrefix(state, "T")
	})
}

// TestCloseOfHung: a program that hangs is killed when the time to close is over.
func TestCloseOfHung(t *testing.T) {
	t.Parallel()
	p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: install(t, "good")})
	if err != nil {
		t.Fatal(err)
	}
	pid := p.Status().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	wait(t, "every thread to be stopped", func() bool { return stopped(pid) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); fault.CodeOf(err) != fault.Timeout {
		t.Errorf("close: %v", err)
	}
	if runs(pid) {
		t.Error("it still runs")
	}
}

// TestRestartsUnderLoad: with 64 callers and a program that is killed 20 times no
// call hangs, each failure says whether it may have been executed, and nothing is
// left; goleak looks at the goroutines.
func TestRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	sockets := socketDir(t)
	p := launch(t, quick(driver.PluginConfig{SocketDir: sockets, Program: "good", Dir: install(t, "good")}))
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
					}
					ok.Add(1)
				}
			}
		})
	}
	var pids []int
	for range kills {
		wait(t, "the program", up(p))
		pid := p.Status().PID
		pids = append(pids, pid)
		select {
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
		case <-t.Context().Done():
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		wait(t, "the end", func() bool { return p.Status().PID != pid })
	}
	wait(t, "the program", up(p))
	close(stop)
	wg.Wait()
	t.Logf("%d calls succeeded, %d unknown, %d unavailable", ok.Load(), unknown.Load(), unavailable.Load())
	if ok.Load() == 0 || unknown.Load()+unavailable.Load() == 0 {
		t.Error("nothing was proved")
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

// TestNoOrphan: a program ends with its worker, however that ends.
func TestNoOrphan(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		cmd, pid := startWorker(t, "TEST_WORKER="+install(t, "good"))
		if !runs(pid) {
			t.Fatalf("the program %d does not run", pid)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		wait(t, "the program's end after "+sig.String(), func() bool { return !runs(pid) })
	}
}

// startWorker starts TestWorker in a process of its own, and returns when its driver runs, with that's PID.
func startWorker(t *testing.T, env ...string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestWorker$", "-test.v") //nolint:noctx // killed by the caller
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, after, ok := strings.Cut(lines.Text(), "PID="); ok {
			pid, err := strconv.Atoi(after)
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the process
			return cmd, pid
		}
	}
	t.Fatalf("the worker has ended: %v, %v", lines.Err(), cmd.Wait())
	return nil, 0
}

// TestSocketsOfKilled: the folder of a service that was killed is removed at the next start, that of one that
// lives is not.
func TestSocketsOfKilled(t *testing.T) {
	t.Parallel()
	programs, sockets := install(t, "good"), socketDir(t)
	env := []string{"TEST_WORKER=" + programs, "TEST_SOCKETS=" + sockets}
	killed, _ := startWorker(t, env...)
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	left, err := os.ReadDir(sockets)
	if err != nil || len(left) != 1 {
		t.Fatalf("a killed worker leaves %v, %v; want one folder", left, err)
	}
	living, pid := startWorker(t, env...)
	now, err := os.ReadDir(sockets)
	if err != nil || len(now) != 1 || now[0].Name() == left[0].Name() {
		t.Errorf("after the next start there are %v, %v; before it %v", now, err, left)
	}
	p := launch(t, driver.PluginConfig{SocketDir: sockets, Program: "good", Dir: programs})
	if both, err := os.ReadDir(sockets); err != nil || len(both) != 2 || !runs(pid) {
		t.Errorf("beside a worker that lives there are %v, %v; its driver runs: %v", both, err, runs(pid))
	}
	if err := errors.Join(living.Process.Kill(), p.Close(t.Context())); err != nil {
		t.Error(err)
	}
	_ = living.Wait()
}

// TestWorker is the worker of TestNoOrphan and TestSocketsOfKilled, in a process of its own.
func TestWorker(t *testing.T) { //nolint:paralleltest // it waits to be killed
	dir := os.Getenv("TEST_WORKER")
	if dir == "" {
		t.Skip("run by TestNoOrphan")
	}
	p, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: dir, SocketDir: os.Getenv("TEST_SOCKETS")})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("PID=%d\n", p.Status().PID)
	<-t.Context().Done()
}

// TestNotADriver: whatever is in place of a program, the error names it and says
// what is wrong, and nothing hangs.
func TestNotADriver(t *testing.T) {
	t.Parallel()
	const line = `1|3|unix|/nonexistent/socket|grpc|`
	cert := strings.Repeat("A", 60)
	dir := install(t, "good", "garbage",
		"exits=echo I cannot find my library >&2; exit 7",
		"silent=exit 0",
		"talks=echo hello, I am a cat; exec sleep 1000",
		"noise=head -c 100000 /dev/zero; exec sleep 1000",
		"waits=exec sleep 1000",
		"old=echo '1|1|unix|/x|grpc|'; exec sleep 1000",
		"netrpc=echo '1|3|unix|/x|netrpc|'; exec sleep 1000",
		"plain=echo '"+line+"'; exec sleep 1000",
		"elsewhere=echo '1|3|tcp|10.0.0.1:22|grpc|"+cert+"'; exec sleep 1000",
		"badcert=echo '"+line+cert+"'; exec sleep 1000",
		"holder=sleep 3 & echo no; exit 9", // a child holds the output open
	)
	if err := os.WriteFile(filepath.Join(dir, "armature-echo-text"), []byte("not a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "armature-echo-data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "armature-echo-open")
	if err := errors.Join(os.WriteFile(open, nil, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "armature-echo-dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 80))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		program string
		cfg     driver.PluginConfig
		code    fault.Code
		says    string
	}{
		{"exits", driver.PluginConfig{}, fault.Internal, "it ended: exit status 7; its last words: I cannot find my library"},
		{"silent", driver.PluginConfig{}, fault.Internal, "it ended by itself"},
		{"talks", driver.PluginConfig{}, fault.Invalid, `it is not a driver: its output begins with "hello, I am a cat"`},
		{"garbage", driver.PluginConfig{}, fault.Unavailable, "first record does not look like a TLS handshake"},
		{"noise", driver.PluginConfig{}, fault.Invalid, `it is not a driver: its output begins with "\x00\x00`},
		{"waits", driver.PluginConfig{StartTimeout: 300 * time.Millisecond}, fault.Timeout, "it did not start in time"},
		{"old", driver.PluginConfig{}, fault.Invalid, "it speaks protocol 1, and this worker 3 and 2"},
		{"netrpc", driver.PluginConfig{}, fault.Invalid, "it is not a driver"},
		{"plain", driver.PluginConfig{}, fault.Invalid, "it offers no certificate"},
		{"elsewhere", driver.PluginConfig{}, fault.Invalid, "it listens on tcp"},
		{"badcert", driver.PluginConfig{}, fault.Internal, "error parsing server cert"},
		{"holder", driver.PluginConfig{}, fault.Invalid, "it is not a driver: its output begins with \"no\""},
		{"text", driver.PluginConfig{}, fault.Internal, "exec format error"},
		{"data", driver.PluginConfig{}, fault.Invalid, "is not executable"},
		{"open", driver.PluginConfig{}, fault.Denied, "can be written by its group or by all users"},
		{"dir", driver.PluginConfig{}, fault.Invalid, "is not a file"},
		{"good", driver.PluginConfig{SHA256: strings.Repeat("0", 64)}, fault.Denied, "and the configuration says 000"},
		{"good", driver.PluginConfig{SocketDir: "/proc"}, fault.Internal, "socket_dir: "},
		{"good", driver.PluginConfig{SocketDir: long}, fault.Invalid, "is too long for the names of sockets"},
		{"good", driver.PluginConfig{Options: json.RawMessage(`{"colour":"red"}`)}, fault.Invalid, `option colour: "red" is not blue`},
		{"good", driver.PluginConfig{Options: json.RawMessage(`{"hang":true}`), StartTimeout: time.Second}, fault.Timeout, "it did not start in time: context deadline exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.program+" "+tt.says[:10], func(t *testing.T) {
			t.Parallel()
			cfg := tt.cfg
			cfg.Program, cfg.Dir, cfg.Logger = tt.program, dir, slog.New(slog.DiscardHandler)
			if cfg.SocketDir == "" {
				cfg.SocketDir = socketDir(t)
			}
			p, err := driver.Launch(t.Context(), echoKind, cfg)
			if p != nil || fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "armature-echo-"+tt.program) {
				t.Errorf("%v: %v\nwant %v with %q and the program's name", fault.CodeOf(err), err, tt.code, tt.says)
			}
			if left, err := os.ReadDir(cfg.SocketDir); cfg.SocketDir != "/proc" && (err != nil || len(left) > 0) {
				t.Errorf("left in the directory of sockets: %v, %v", left, err)
			}
		})
	}
}

// TestPin: the right sum is taken, and compared at each start. A program that was replaced while it ran is refused at its
// restart. That is not a crash: the circuit does not open, the log has one line, and the right file is started again.
func TestPin(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	dir := install(t, "good")
	var out logBuffer
	p := launch(t, driver.PluginConfig{
		Program: "good", Dir: dir, SHA256: strings.ToUpper(hex.EncodeToString(sum[:])), Logger: slog.New(slog.NewTextHandler(&out, nil)),
		MinDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond, MaxCrashes: 2, Cooldown: time.Hour,
	})
	path := filepath.Join(dir, "armature-echo-good")
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte("#!/bin/sh\necho evil"), 0o700)); err != nil {
		t.Fatal(err)
	}
	_, _ = p.Driver().Echo(t.Context(), "exit:1")
	wait(t, "the refusal", func() bool { return p.Status().State == driver.Refused })
	first := p.Status().Next
	wait(t, "ten more looks", func() bool { return p.Status().Next.Sub(first) > 200*time.Millisecond })
	if st := p.Status(); st.State != driver.Refused || fault.CodeOf(st.Err) != fault.Denied {
		t.Errorf("%+v", st)
	}
	if err := p.Check(t.Context()); fault.CodeOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "is refused") || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("Check: %v", err)
	}
	if refused, crashes := out.count("driver program refused"), out.count("crashes="); refused != 1 || crashes != 1 {
		t.Errorf("%d refusals and %d crashes in the log, want 1 and 1", refused, crashes)
	}
	if err := errors.Join(os.Remove(path), os.Symlink(self, path)); err != nil {
		t.Fatal(err)
	}
	wait(t, "the restart", up(p))
}

// TestEnvironment: the program inherits no secrets.
func TestEnvironment(t *testing.T) {
	t.Setenv("DATABASE_URL", "mysql://nova:secret@db/nova")
	t.Setenv("LANG", "de_CH.UTF-8")
	p := launch(t, driver.PluginConfig{Env: []string{"ACME_HOME=/opt/acme"}, MaxFiles: 123, MaxMemoryMiB: 4096})
	env, err := p.Driver().Echo(t.Context(), "env")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"LANG=de_CH.UTF-8": true, "ACME_HOME=/opt/acme": true, "PATH=" + os.Getenv("PATH"): true, "secret": false} {
		if strings.Contains(env, name) != want {
			t.Errorf("%s in the environment: %v, want %v\n%s", name, !want, want, env)
		}
	}
	if got, err := p.Driver().Echo(t.Context(), "limit"); got != "123 files, 4096 MiB" || err != nil {
		t.Errorf("limits: %s, %v", got, err)
	}
}

// TestUser: root can run a program as somebody else.
func TestUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		_, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: install(t, "good"), User: "nobody"})
		if err == nil || !strings.Contains(err.Error(), "option user") {
			t.Errorf("%v, want that it takes root", err)
		}
		return
	}
	// The binary is in a directory that only root can enter.
	dir, err := os.MkdirTemp("/var/tmp", "armature-test-") //nolint:usetesting // t.TempDir is for its owner only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(self)
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "armature-echo-good"), raw, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	for _, pin := range []string{"", hex.EncodeToString(sum[:])} {
		p := launch(t, driver.PluginConfig{Program: "good", Dir: dir, SocketDir: "/var/tmp", User: "nobody", SHA256: pin})
		if got, err := p.Driver().Echo(t.Context(), "uid"); got == "0" || err != nil {
			t.Errorf("it runs as %s, %v", got, err)
		}
	}
	if _, err := driver.Launch(t.Context(), echoKind, driver.PluginConfig{Program: "good", Dir: dir, User: "no-such-user"}); fault.CodeOf(err) != fault.Invalid {
		t.Errorf("an unknown user: %v", err)
	}
}

// TestLog: what a program logs is in the worker's log, and no amount of it holds
// up the worker or the program.
func TestLog(t *testing.T) {
	t.Parallel()
	var log logBuffer
	p := launch(t, driver.PluginConfig{Logger: slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	d := p.Driver()
	if _, err := d.Echo(t.Context(), "log"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"level":"WARN","msg":"the fan is slow","driver":"good","rpm":300`, `"level":"INFO","msg":"plain words"`, `"msg":"printed"`} {
		wait(t, want+" in the log", log.has(want))
	}
	for _, line := range []string{`{"@message": 5, "@level": 7}`, `{"@message":"x","@timestamp":true}`, "{", "\xff\xfe", strings.Repeat("long ", 100_000), `{"level":"FATAL","msg":"the end"}`} {
		if _, err := d.Echo(t.Context(), "write:"+strconv.Quote(line+"\n")); err != nil {
			t.Errorf("%.20s: %v", line, err)
		}
	}
	wait(t, "the last line", log.has(`"level":"ERROR","msg":"the end"`))
	if !log.has("long (cut)")() {
		t.Error("a long line was not cut")
	}
	if _, err := d.Echo(t.Context(), "flood:200000"); err != nil {
		t.Errorf("a flood: %v", err)
	}
	if _, err := d.Echo(t.Context(), "log"); err != nil {
		t.Error(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	wait(t, "the count of what was dropped", log.has("lines were dropped"))
	if n := log.lines(); n > 50_000 {
		t.Errorf("%d lines of 200,000 are in the log", n)
	}
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) has(s string) func() bool {
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return bytes.Contains(l.b.Bytes(), []byte(s))
	}
}

func (l *logBuffer) lines() int { return l.count("\n") }

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.b.Bytes(), []byte(s))
}

package service_test

import (
	"bufio"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service"
)

// TestReloadWhileDraining: the drain ends a reload. Later parts are not reloaded, and the drain does not wait for the reload.
func TestReloadWhileDraining(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		reload func(ctx context.Context) error
		says   string
	}{
		{"a Reload that obeys its context", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, "reloaded=[] unchanged=\"[a b]\""},
		{"a Reload that succeeds after its context has ended", func(ctx context.Context) error { <-ctx.Done(); return nil }, "reloaded=[a] unchanged=[b]"},
		{"a Reload that ignores its context", func(context.Context) error { <-time.After(20 * time.Second); return nil }, "reloaded=[] unchanged=\"[a b]\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				out, j := new(lockedText), new(journal)
				app := service.New(service.Config{NoSignals: true, DrainTimeout: 2 * time.Second, Logger: slog.New(slog.NewTextHandler(out, nil))})
				var stopping time.Time
				app.Add("a", service.Funcs{OnReload: tt.reload, OnStop: func(context.Context) error { stopping = time.Now(); return nil }})
				app.Add("b", service.Funcs{OnReload: func(context.Context) error { j.add("reload b"); return nil }})
				ctx, stop := context.WithCancel(t.Context())
				ended, reloaded := make(chan error, 1), make(chan error, 1)
				go func() { ended <- app.Run(ctx) }()
				<-app.Started()
				go func() { reloaded <- app.Reload(context.WithoutCancel(ctx)) }()
				synctest.Wait()
				begin := time.Now()
				stop()
				if err := <-ended; err != nil || time.Since(begin) > 1500*time.Millisecond {
					t.Errorf("Run = %v, %s after the beginning of the drain", err, time.Since(begin))
				}
				if stopping.Sub(begin) > 0 {
					t.Errorf("the drain waited %s for the reload", stopping.Sub(begin))
				}
				if err := <-reloaded; fault.CodeOf(err) != fault.Unavailable || time.Since(begin) > 1500*time.Millisecond {
					t.Errorf("Reload = %v %s after the beginning of the drain, want Unavailable", err, time.Since(begin))
				}
				<-time.After(30 * time.Second) // an abandoned reload ends
				if calls := j.entries(); len(calls) > 0 {
					t.Errorf("calls %q after the beginning of the drain", calls)
				}
				if !strings.Contains(out.String(), tt.says) {
					t.Errorf("the log lacks %s:\n%s", tt.says, out)
				}
			})
		})
	}
}

// runChild runs the child in a mode, and returns the lines that the child writes. After each line, runChild sends signals to the
// child. The key in signals is the line. If the child writes the line a second time, the key is the line and +, then the line and
// ++, and so on.
func runChild(t *testing.T, mode string, signals map[string][]syscall.Signal) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waittest.Timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "SERVICE_TEST_CHILD="+mode)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	count := map[string]int{}
	for scan := bufio.NewScanner(out); scan.Scan(); {
		line := scan.Text()
		lines = append(lines, line)
		count[line]++
		for _, s := range signals[line+strings.Repeat("+", count[line]-1)] {
			if err := cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v after %q", err, lines)
	}
	return lines
}

// TestReloadSignals: SIGHUPs that arrive while the App starts, drains or reloads cause the right number of reloads.
func TestReloadSignals(t *testing.T) {
	t.Parallel()
	const report = "==== child: report"
	for _, tt := range []struct {
		name, mode string
		signals    map[string][]syscall.Signal // the key is a line of the output, see runChild
		want       []string
	}{
		{
			// The reload ignores its context for longer than the test runs.
			"SIGHUP while parts start, then SIGTERM", "hangs",
			map[string][]syscall.Signal{"waits": {syscall.SIGHUP}, "reloading": {syscall.SIGTERM}},
			[]string{"waits", "waits", "reloading", "stopping", "clean"},
		},
		{
			"SIGTERM while a reload runs", "hangs",
			map[string][]syscall.Signal{"ready": {syscall.SIGHUP}, "reloading": {syscall.SIGTERM}},
			[]string{"waits", "waits", "ready", "reloading", "stopping", "clean"},
		},
		{
			// A report after each SIGHUP shows that the App has received the SIGHUP.
			"SIGHUP while a reload waits", "holds",
			map[string][]syscall.Signal{
				"ready": {syscall.SIGHUP}, "reloading": {syscall.SIGHUP, syscall.SIGUSR2},
				report: {syscall.SIGHUP, syscall.SIGUSR2}, report + "+": {syscall.SIGHUP, syscall.SIGUSR2}, report + "++": {syscall.SIGUSR1},
				"reloading+": {syscall.SIGUSR2}, report + "+++": {syscall.SIGUSR2}, report + "++++": {syscall.SIGTERM},
			},
			[]string{"ready", "reloading", report, report, report, "reloading", report, report, "stopping", "clean"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			got := runChild(t, tt.mode, tt.signals)
			if took := time.Since(begin); took > 15*time.Second { // a reload that hangs takes 20 s
				t.Errorf("the process ended after %s", took)
			}
			if tt.signals["waits"] != nil { // "ready" comes from another goroutine than "reloading"
				got = strings.Split(strings.Replace(strings.Join(got, ","), "ready,", "", 1), ",")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}

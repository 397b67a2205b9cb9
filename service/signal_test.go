package service_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service"
)

// child is the main function of the test binary when a test starts it as a child: it
// runs an App and writes its state to its standard output.
func child(mode string) int {
	if mode == "starting" { // like a main function that does other work before it calls Run
		service.CatchSignals()
		fmt.Println("early")
		waittest.Spend(300*time.Millisecond, "the work before Run")
	}
	if mode == "away" || mode == "holds" {
		here = make(chan os.Signal, 1)
		signal.Notify(here, syscall.SIGUSR1)
	}
	var reports io.Writer = firstLine{}
	if mode == "blocked" {
		reports = blockedWriter{}
	}
	app := service.New(service.Config{Name: "child", DrainTimeout: 50 * time.Millisecond, Logger: quiet(), ReportTo: reports})
	app.AddLabeled("part", "option x", childPart(mode))
	go func() {
		<-app.Started()
		fmt.Println("ready")
	}()
	if err := app.Run(context.Background()); err != nil {
		fmt.Println("error:", err)
		return 3
	}
	fmt.Println("clean")
	return 0
}

type childPart string

func (p childPart) Start(context.Context) error {
	if (p == "starting" || p == "hangs") && waits.Add(1) < 3 {
		fmt.Println("waits")
		waittest.Spend(200*time.Millisecond, "the part that is away")
		return fault.New(fault.Unavailable, "away")
	}
	if p == "away" {
		select {
		case <-here:
		default:
			return fault.New(fault.Unavailable, "dial: refused\nand more")
		}
	}
	return nil
}

var waits, reloads atomic.Int32

// here is the channel that gets the test's signal SIGUSR1. After this signal the part in the mode "away" can start, and the first reload in
// the mode "holds" ends.
var here chan os.Signal

func (p childPart) Reload(context.Context) error {
	fmt.Println("reloading")
	switch {
	case p == "hangs":
		waittest.Spend(20*time.Second, "a reload that hangs")
	case p == "holds" && reloads.Add(1) == 1:
		<-here
	}
	return nil
}

// Check hangs in the mode "stuck", so that the watchdog is not fed.
func (p childPart) Check(context.Context) error {
	switch p {
	case "unready":
		return errBoom
	case "stuck":
		if stuck.Add(1) > 2 { // the first two checks succeed, so that the App becomes ready
			select {}
		}
	}
	return nil
}

var stuck atomic.Int32

// firstLine prints the first line of a report, without its time.
type firstLine struct{}

func (firstLine) Write(p []byte) (int, error) {
	if head, _, ok := strings.Cut(string(p), " of 2"); ok {
		fmt.Println(head)
	}
	return len(p), nil
}

// blockedWriter is a pipe that no program reads.
type blockedWriter struct{}

func (blockedWriter) Write([]byte) (int, error) {
	fmt.Println("blocked")
	select {}
}

func (p childPart) Stop(ctx context.Context) error {
	fmt.Println("stopping")
	switch p {
	case "late":
		<-ctx.Done()
		return ctx.Err()
	case "hung":
		select {} // until the second signal
	}
	return nil
}

// TestSignalsWhileStarting: SIGHUP and SIGUSR2 do not kill a process that has not run its App yet, or
// that waits for a part. After a SIGHUP the parts are reloaded when all of them have started.
func TestSignalsWhileStarting(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), waittest.Timeout) // a child that is not reloaded does not end
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "SERVICE_TEST_CHILD=starting")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		got = append(got, lines.Text())
		signals := map[string][]os.Signal{"early": {syscall.SIGHUP, syscall.SIGUSR2}, "waits": {syscall.SIGHUP}, "reloading": {syscall.SIGTERM}}[lines.Text()]
		for _, s := range signals {
			if err := cmd.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
	}
	text := strings.Replace(strings.Join(got, " "), " ready", "", 1) // the App may be stopped before the child prints that it is ready
	if err := cmd.Wait(); err != nil || !strings.HasPrefix(text, "early waits waits ") || strings.Count(text, "reloading") != 1 || !strings.HasSuffix(text, "stopping clean") {
		t.Errorf("%v: %s", err, text)
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, mode string
		signals    []syscall.Signal // the first one is sent after the first line of the output, the next one after the next line
		wantCode   int
		wantOut    string
	}{
		{"SIGTERM drains", "good", []syscall.Signal{syscall.SIGTERM}, 0, "ready stopping clean"},
		{"SIGINT drains", "good", []syscall.Signal{syscall.SIGINT}, 0, "ready stopping clean"},
		{
			"cut off", "late",
			[]syscall.Signal{syscall.SIGTERM},
			3, "ready stopping error: child: cut off after 50ms: part",
		},
		{"SIGHUP reloads, SIGUSR2 reports", "good", []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTERM}, 0, "ready reloading ==== child: report stopping clean"},
		{"a report that blocks does not delay the end", "blocked", []syscall.Signal{syscall.SIGUSR2, syscall.SIGTERM}, 0, "ready blocked stopping clean"},
		{"second signal exits at once", "hung", []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, 1, "ready stopping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), waittest.Timeout) // a child that does not end is killed
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), "SERVICE_TEST_CHILD="+tt.mode)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var seen []string
			for lines := bufio.NewScanner(out); lines.Scan(); {
				seen = append(seen, lines.Text())
				if i := len(seen) - 1; i < len(tt.signals) {
					if err := cmd.Process.Signal(tt.signals[i]); err != nil {
						t.Error(err)
					}
				}
			}
			err = cmd.Wait()
			code := 0
			if exit, ok := errors.AsType[*exec.ExitError](err); ok {
				code = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(seen, " "); code != tt.wantCode || got != tt.wantOut {
				t.Errorf("exit %d after %q, want %d after %q", code, got, tt.wantCode, tt.wantOut)
			}
		})
	}
}

// TestSystemd: a service tells systemd its state. It feeds the watchdog even while it is not ready, but not while a check
// hangs. While the service waits for a part, each attempt extends the timeout of the start. A SIGHUP during that wait does not
// report READY=1.
func TestSystemd(t *testing.T) {
	t.Parallel()
	const waiting = "EXTEND_TIMEOUT_USEC=90000000\nSTATUS=waiting: start part (option x): dial: refused; and more"
	for _, tt := range []struct {
		mode  string
		wants []string // in this order; other notifications may come between them
		never string
	}{
		{"good", []string{"READY=1\nSTATUS=running", "WATCHDOG=1\nSTATUS=running", "RELOADING=1\nMONOTONIC_USEC=", "READY=1", "WATCHDOG=1", "STOPPING=1\nSTATUS=draining"}, ""},
		{"unready", []string{"READY=1\nSTATUS=running", "WATCHDOG=1\nSTATUS=not ready: part: boom", "RELOADING=1", "STOPPING=1"}, ""},
		{"stuck", []string{"READY=1\nSTATUS=running", "STATUS=part: the check hangs for", "RELOADING=1", "STOPPING=1"}, "WATCHDOG=1\nSTATUS=not"},
		{"away", []string{waiting, waiting, "SIGHUP " + waiting, waiting, "SIGUSR1 READY=1\nSTATUS=running", "STOPPING=1"}, "RELOADING=1"},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			t.Parallel()
			addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
			sd, err := net.ListenUnixgram("unixgram", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer sd.Close()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "SERVICE_TEST_CHILD="+tt.mode, "NOTIFY_SOCKET="+addr.Name, "WATCHDOG_USEC=50000")
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4096)
			if err := sd.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.wants {
				sent, rest, found := strings.Cut(want, " ")
				if s := map[string]syscall.Signal{"SIGHUP": syscall.SIGHUP, "SIGUSR1": syscall.SIGUSR1}[sent]; found && s != 0 {
					want, err = rest, cmd.Process.Signal(s)
				}
				switch {
				case strings.HasPrefix(want, "RELOADING"):
					err = cmd.Process.Signal(syscall.SIGHUP)
				case strings.HasPrefix(want, "STOPPING"):
					err = cmd.Process.Signal(syscall.SIGTERM)
				}
				if err != nil {
					t.Fatal(err)
				}
				for said := ""; !strings.HasPrefix(said, want); {
					n, err := sd.Read(buf)
					if err != nil {
						t.Fatalf("the process does not notify %q: %v", want, err)
					}
					said = string(buf[:n])
					if tt.mode == "away" && said == "READY=1" {
						t.Error("the process notifies READY=1 before it is ready")
					}
					if tt.never != "" && strings.HasPrefix(said, tt.never) {
						t.Errorf("the process notifies %q", said)
					}
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

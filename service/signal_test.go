package service_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/service"
)

// child is what the test binary does when it is started as a child: it
// runs an App and says on its standard output where it is.
func child(mode string) int {
	app := service.New(service.Config{Name: "child", DrainTimeout: 50 * time.Millisecond, Logger: quiet()})
	app.Add("part", childPart(mode))
	go func() {
		for app.Ready(context.Background()) != nil {
			<-time.After(time.Millisecond)
		}
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

func (childPart) Start(context.Context) error { return nil }

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

func TestSignals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, mode string
		signals    []syscall.Signal // the first when ready, the second when stopping
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
		{"second signal exits at once", "hung", []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, 1, "ready stopping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
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

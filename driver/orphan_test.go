package driver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/internal/waittest"
)

// TestNoOrphan: a program ends with its worker, even if the worker is killed.
func TestNoOrphan(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		cmd, pid := startWorker(t, "TEST_WORKER="+installPrograms(t, "good"))
		if !runs(pid) {
			t.Fatalf("the program %d does not run", pid)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		waittest.Until(t, "the program's end after "+sig.String(), func() bool { return !runs(pid) })
	}
}

// startWorker starts runWorker in a process of its own, and returns when its driver runs, with the PID of the driver.
func startWorker(t *testing.T, env ...string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:noctx // killed by the caller
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

// TestSocketsOfKilled: the directory of a killed service is removed at the next start; that of a running service
// is not.
func TestSocketsOfKilled(t *testing.T) {
	t.Parallel()
	programs, sockets := installPrograms(t, "good"), socketDir(t)
	env := []string{"TEST_WORKER=" + programs, "TEST_SOCKETS=" + sockets}
	killed, _ := startWorker(t, env...)
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	left, err := os.ReadDir(sockets)
	if err != nil || len(left) != 1 {
		t.Fatalf("a killed worker leaves %v, %v; want one directory", left, err)
	}
	living, pid := startWorker(t, env...)
	now, err := os.ReadDir(sockets)
	if err != nil || len(now) != 1 || now[0].Name() == left[0].Name() {
		t.Errorf("after the next start there are %v, %v; before it %v", now, err, left)
	}
	p := launchPlugin(t, driver.PluginConfig{SocketDir: sockets, Program: "good", Dir: programs})
	if both, err := os.ReadDir(sockets); err != nil || len(both) != 2 || !runs(pid) {
		t.Errorf("beside a worker that lives there are %v, %v; its driver runs: %v", both, err, runs(pid))
	}
	if err := errors.Join(living.Process.Kill(), p.Close(t.Context())); err != nil {
		t.Error(err)
	}
	_ = living.Wait()
}

// runWorker is the worker of TestNoOrphan and TestSocketsOfKilled, in a process of its own. It launches the driver program good of
// a directory, prints the driver's PID, and waits to be killed. TestMain calls it.
func runWorker(programs, sockets string) {
	p, err := driver.Launch(context.Background(), echoKind, driver.PluginConfig{Program: "good", Dir: programs, SocketDir: sockets})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("PID=%d\n", p.Status().PID)
	select {}
}

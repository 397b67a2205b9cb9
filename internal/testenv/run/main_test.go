package main_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/testenv"
)

// TestRun runs commands with the program, and ends them in different ways. Each time no
// process is left. No directory is left, unless the program was killed.
func TestRun(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts services: left out with -short")
	}
	if runtime.GOOS != "linux" {
		t.Skip("needs process groups and /proc")
	}
	if missing := testenv.Missing(); len(missing) > 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("not installed: %q", missing)
		}
		t.Skipf("not installed: %q", missing)
	}
	bin := filepath.Join(t.TempDir(), "run")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	// script checks the environment of the command. stay makes the command wait for a signal.
	const script = `test -n "$ARMATURE_TEST_AMQP_URL" && test -n "$ARMATURE_TEST_NATS_URL" && ` +
		`test -n "$ARMATURE_TEST_MYSQL_URL" && echo ready; `
	const stay = `sleep 1000 & wait`
	tests := []struct {
		name   string
		script string
		signal syscall.Signal
		want   int
		dirs   int // directories that are left in TMPDIR
	}{
		{"fails", script + "exit 7", 0, 7, 0},
		{"leaves a child", script + "sleep 1000 &", 0, 0, 0},
		{"terminated", script + stay, syscall.SIGTERM, 128 + 15, 0},
		{"ends well when interrupted", `trap "exit 0" INT; ` + script + stay, syscall.SIGINT, 1, 0},
		{"killed", script + "exec sleep 1000", syscall.SIGKILL, -1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tmp := t.TempDir()
			cmd := exec.CommandContext(t.Context(), bin, "--", "sh", "-c", tt.script, tmp)
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			cmd.WaitDelay = 5 * time.Second // in case a process that is left keeps the output open
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line := make([]byte, 5)
			if _, err := stdout.Read(line); err != nil || string(line) != "ready" {
				t.Fatalf("the command said %q (%v), want ready\n%s", line, err, &stderr)
			}
			if tt.signal != 0 {
				if err := cmd.Process.Signal(tt.signal); err != nil {
					t.Fatal(err)
				}
			}
			err = cmd.Wait()
			code := 0
			if ee, ok := errors.AsType[*exec.ExitError](err); ok {
				code = ee.ExitCode()
			}
			if code != tt.want {
				t.Errorf("exit code %d (%v), want %d\n%s", code, err, tt.want, &stderr)
			}
			left := processes(t, tmp)
			for tt.signal == syscall.SIGKILL && len(left) > 0 { // until the kernel has killed them
				left = processes(t, tmp)
			}
			if len(left) > 0 {
				t.Errorf("processes left: %q", left)
			}
			if dirs, _ := filepath.Glob(filepath.Join(tmp, "*")); len(dirs) != tt.dirs {
				t.Errorf("left: %q", dirs)
			}
		})
	}
}

// TestUsage: without a command the program prints its usage.
func TestUsage(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "run", ".", "--").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "usage:") {
		t.Errorf("run --: %v, %q; want usage", err, out)
	}
}

// TestInstall: if apt-get succeeds but installs nothing, the error names every package that is still missing, including
// those that only tests need.
func TestInstall(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("only root on Linux installs packages")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "run")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "--", "/bin/sh", "-c", "echo started")
	cmd.Env = []string{"PATH=" + dir, "HOME=" + dir, "TMPDIR=" + dir} // without gcc and curl
	out, err := cmd.CombinedOutput()
	last := strings.Split(strings.TrimSpace(string(out)), "\n")
	if text := last[len(last)-1]; err == nil || !strings.Contains(text, "apt-get succeeded") || !strings.Contains(text, "gcc") || !strings.Contains(text, "curl") {
		t.Errorf("%v\n%s\nwant an error that names gcc and curl", err, out)
	}
}

// processes returns the command lines of all processes that have text in their command
// line, their directory or their environment.
func processes(t *testing.T, text string) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, d := range dirs {
		line, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		cwd, _ := os.Readlink(filepath.Join(d, "cwd"))
		if bytes.Contains(line, []byte(text)) || bytes.Contains(env, []byte(text)) || strings.HasPrefix(cwd, text) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

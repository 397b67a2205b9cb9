package main_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/db"
	_ "github.com/armature-go/armature/db/mysqldb"
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
	if err := testenv.CheckNATS(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	bin := build(t, t.TempDir())
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

// build builds the program in a directory, and returns its path.
func build(t *testing.T, dir string) string {
	t.Helper()
	bin := filepath.Join(dir, "run")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// TestUsage: wrong arguments are refused before a service starts, with the reason and the usage.
func TestUsage(t *testing.T) {
	t.Parallel()
	bin := build(t, t.TempDir())
	for args, want := range map[string]string{
		"--":                            "the command is missing",
		"--bus":                         "the option --bus does not exist here",
		"--only":                        "--only has no value",
		"--only rabbit":                 `--only rabbit: the service "rabbit" does not exist`,
		"--only nats,":                  `the service "" does not exist`,
		"--only mariadb,nats,mariadb":   "mariadb is named twice",
		"--only mariadb --verbose true": "the option --verbose does not exist here",
	} {
		out, err := exec.CommandContext(t.Context(), bin, strings.Fields(args)...).CombinedOutput()
		ee, ok := errors.AsType[*exec.ExitError](err)
		if !ok || ee.ExitCode() != 2 || !strings.Contains(string(out), want) || !strings.Contains(string(out), "usage:") {
			t.Errorf("%s: %v, %s; want %q, and the usage", args, err, out, want)
		}
	}
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// withoutTools returns a directory with the program and an apt-get that writes its name into the file "called", and an environment whose PATH
// is this directory: gcc and curl are missing.
func withoutTools(t *testing.T) (bin string, env []string, called string) {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("only root on Linux installs packages")
	}
	dir := t.TempDir()
	bin, called = build(t, dir), filepath.Join(dir, "called")
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte("#!/bin/sh\necho apt-get >>"+called+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return bin, []string{"PATH=" + dir, "HOME=" + dir, "TMPDIR=" + dir}, called
}

// TestInstall: if apt-get succeeds but installs nothing, the error names every package that is still missing, including
// those that only tests need. Without NATS nothing is installed, because Debian's package may be too old.
func TestInstall(t *testing.T) {
	t.Parallel()
	bin, env, called := withoutTools(t)
	install := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), bin, "--", "/bin/sh", "-c", "echo started")
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		last := strings.Split(strings.TrimSpace(string(out)), "\n")
		return last[len(last)-1], err
	}
	if list, _ := filepath.Glob("/usr/*/sbin/nats-server"); len(list) == 0 && !exists("/usr/sbin/nats-server") { // it is found without PATH
		if text, err := install(); err == nil || !strings.Contains(text, "make bin/testenv builds it") {
			t.Errorf("%v, %s; want an error that says how to build NATS", err, text)
		}
		if exists(called) {
			t.Error("apt-get was called")
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(bin), "nats-server"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if text, err := install(); err == nil || !strings.Contains(text, "apt-get succeeded") || !strings.Contains(text, "gcc") || !strings.Contains(text, "curl") {
		t.Errorf("%v, %s; want an error that names gcc and curl", err, text)
	}
	if !exists(called) {
		t.Error("apt-get was not called")
	}
}

// TestOnly: with --only, the program starts only the services that are named, and installs nothing. Without a command it prints the options of a
// component until a signal ends it.
func TestOnly(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts services: left out with -short")
	}
	bin, env, called := withoutTools(t)
	if slices.Contains(testenv.Missing(), "mariadb-server") {
		t.Skip("MariaDB is not installed")
	}
	env[0] += string(os.PathListSeparator) + os.Getenv("PATH") // a script that installs MariaDB's tables calls other programs
	missing := t.TempDir()                                     // a module of Python that all tests need cannot be imported
	if err := os.WriteFile(filepath.Join(missing, "grpc.py"), []byte("raise ImportError\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env = append(env, "PYTHONPATH="+missing)
	const script = `test -n "$ARMATURE_TEST_MYSQL_URL" && test -z "$ARMATURE_TEST_AMQP_URL$ARMATURE_TEST_NATS_URL"`
	cmd := exec.CommandContext(t.Context(), bin, "--only", "mariadb", "--", "/bin/sh", "-c", script)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}

	cmd = exec.CommandContext(t.Context(), bin, "--only", "mariadb")
	cmd.Env = env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines, options := bufio.NewScanner(stdout), ""
	for !strings.Contains(options, "connection = ") && lines.Scan() {
		options += lines.Text() + "\n"
	}
	database, found := strings.CutPrefix(options, "[database]\nconnection = ")
	if !found {
		t.Errorf("%q, want the section [database]", options)
	} else if d, err := db.Open(t.Context(), db.Config{URL: strings.TrimSpace(database)}); err != nil {
		t.Error(err)
	} else if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, &stderr)
	}
	if exists(called) {
		t.Error("apt-get was called")
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

package armature_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/internal/waittest"
)

// checkout copies the files of the project into an empty directory, as a clone has them, and returns the directory.
func checkout(t *testing.T) string {
	t.Helper()
	dir, root := t.TempDir(), "."
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (d.Name() == ".git" || rel == "bin"):
			return fs.SkipDir
		case d.Name() == ".git": // in a worktree .git is a file that names the repository; the copy must not have this file
			return nil
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dir, rel), 0o750)
		case !d.Type().IsRegular():
			return nil
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, rel), raw, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// cloneCommand is the command with which the documents get the project.
const cloneCommand = "git clone https://github.com/armature-go/armature"

// cloneProject runs cloneCommand in an empty directory, and returns the directory. Instead of the project's repository, the command
// clones a repository with the files of this module.
func cloneProject(t *testing.T) string {
	t.Helper()
	origin, dir := checkout(t), t.TempDir()
	for _, doc := range []string{"README.md", "docs/tutorial.md", "docs/operating.md", "docs/writing-a-driver.md"} {
		if !strings.Contains(readFile(t, doc), cloneCommand) {
			t.Errorf("%s does not have %s", doc, cloneCommand)
		}
	}
	const commit = "unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR; git init -q && test -d .git && git add -A && git -c core.hooksPath=/dev/null -c user.name=test -c user.email=test@example.org commit -qm all"
	if out, err := sh(t, origin, commit); err != nil {
		t.Fatalf("%s: %v: %s", commit, err, out)
	}
	instead := "export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0='url." + origin + ".insteadOf' GIT_CONFIG_VALUE_0='" + strings.Fields(cloneCommand)[2] + "'\n"
	if out, err := sh(t, dir, instead+cloneCommand); err != nil {
		t.Fatalf("%s: %v: %s", cloneCommand, err, out)
	}
	return dir
}

// TestCommands runs the first commands of README.md, the commands that nova-mini prints for its users, and the commands of
// docs/writing-a-driver.md. (TestTutorial runs the commands of docs/tutorial.md.) The directory is empty, and the commands are
// unchanged, except for a port and a directory, because several tests run at the same time.
func TestCommands(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds the module in an empty directory: left out with -short")
	}
	readTree(t) // the commands build every package of the module
	parent := cloneProject(t)
	dir := filepath.Join(parent, "armature")
	t.Run("README", func(t *testing.T) { t.Parallel(); readme(t, dir) })
	t.Run("driver", func(t *testing.T) { t.Parallel(); ownDrivers(t, parent) })
}

// blocksOf returns the blocks of code of a document, by language.
func blocksOf(t *testing.T, name string) map[string][]string {
	t.Helper()
	blocks := map[string][]string{}
	for _, b := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(readFile(t, name), -1) {
		blocks[b[1]] = append(blocks[b[1]], b[2])
	}
	return blocks
}

// ownDrivers runs the commands of docs/writing-a-driver.md beside the clone: they write two drivers, and check the rules of drivers with
// their programs.
func ownDrivers(t *testing.T, parent string) {
	t.Helper()
	blocks := blocksOf(t, "docs/writing-a-driver.md")["sh"]
	if len(blocks) != 3 || blocks[0] != cloneCommand+"\n" || strings.Count(blocks[1], "/tmp/servers") != 1 || !strings.Contains(blocks[2], "--lang python") {
		t.Fatalf("want the clone, the driver in Go with a directory /tmp/servers, and the driver in Python: %q", blocks)
	}
	for i, lang := range []string{"go", "python"} {
		t.Run(lang, func(t *testing.T) {
			t.Parallel()
			out, err := sh(t, parent, strings.Replace(blocks[i+1], "/tmp/servers", filepath.Join(t.TempDir(), "servers"), 1))
			if err != nil || !strings.Contains(out, " rules kept, 0 broken") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// readme starts nova-mini, and runs the commands that nova-mini prints.
func readme(t *testing.T, dir string) {
	t.Helper()
	const command = "go run ./examples/nova-mini"
	if !strings.Contains(readFile(t, "README.md"), "\n    "+cloneCommand+" && cd armature\n    "+command+" ") {
		t.Fatalf("README.md does not have %s", command)
	}
	running := inBackground(t, dir, command, []string{"OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT=0", "TMPDIR=" + t.TempDir()})
	var paste []string
	if err := waittest.Poll(3*time.Minute, func() error { // the command compiles the program first
		if paste = regexp.MustCompile(`(?m)^  (.*)$`).FindAllString(running.printed(), -1); len(paste) >= 5 {
			return nil
		}
		return fmt.Errorf("%s does not print commands: %s", command, running.printed())
	}); err != nil {
		t.Fatal(err)
	}
	last := paste[2]
	out, err := sh(t, dir, strings.Join(paste[:2], "\n")+"\nfor i in $(seq 100); do"+last+" | grep -q ACTIVE && echo built && break; sleep 0.1; done")
	if err != nil || !strings.Contains(out, "built") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := exec.LookPath("openstack"); err != nil && os.Getenv("CI") == "" {
		return
	}
	if out, err := sh(t, dir, strings.Join(paste[3:5], "\n")); err != nil || !strings.Contains(out, "ACTIVE") {
		t.Errorf("%v: %s", err, out)
	}
}

func sh(t *testing.T, dir, command string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// background is a running command with its process group.
type background struct {
	cmd   *exec.Cmd
	out   *os.File
	guard *exec.Cmd // interrupts the process group if this process ends without a call of stop
	alive *os.File  // one end of a pipe; the guard reads the other end, and gets an end of file when this process has ended
	once  sync.Once
}

// inBackground starts a command of a shell. The command runs until stop is called, the test ends, or the test's process is killed.
func inBackground(t *testing.T, dir, command string, env []string) *background {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "printed"))
	if err != nil {
		t.Fatal(err)
	}
	b := &background{cmd: exec.CommandContext(context.Background(), "sh", "-euc", command), out: out}
	b.startGuard(t)
	b.cmd.Dir, b.cmd.Stdout, b.cmd.Stderr = dir, out, out
	b.cmd.Env = append(os.Environ(), env...)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: b.guard.Process.Pid}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.stop()
		_ = out.Close()
	})
	return b
}

// guardScript interrupts the process group of the script when its standard input ends without a line. A shell may miss a signal that
// arrives before the shell waits for its child. Therefore the script repeats the signal, and finally kills the group.
const guardScript = `trap "" INT
read stopped && exit
for i in 1 2 3 4 5; do kill -INT 0; sleep 1; done
kill -KILL 0`

// startGuard starts the guard, the first process of the command's process group. The guard interrupts the group if this
// process ends without a call of stop. The parent-death signal of Linux is not enough: it would reach only the shell, and not the
// program that "go run" has started.
func (b *background) startGuard(t *testing.T) {
	t.Helper()
	stdin, alive, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	b.alive = alive
	b.guard = exec.CommandContext(context.Background(), "sh", "-c", guardScript)
	b.guard.Stdin, b.guard.SysProcAttr = stdin, &syscall.SysProcAttr{Setpgid: true}
	if err := b.guard.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop interrupts the command, as Ctrl-C does, and waits for its end.
func (b *background) stop() {
	b.once.Do(func() {
		_ = syscall.Kill(-b.guard.Process.Pid, syscall.SIGINT) // the guard ignores the signal
		_ = b.cmd.Wait()                                       // an error means that the command was interrupted
		_, _ = b.alive.WriteString("stopped\n")                // after this line the guard ends without a signal
		_ = b.guard.Wait()
		_ = b.alive.Close()
	})
}

// guardedVar is the name of an environment variable. TestBackgroundEnds starts a copy of this test binary, and kills it.
// For the copy the variable is set to the path of a FIFO.
const guardedVar = "ARMATURE_TEST_GUARDED"

// TestBackgroundEnds: when the process of a test is killed, the command that the test has started in the background ends, and so do the
// processes of the command.
func TestBackgroundEnds(t *testing.T) {
	t.Parallel()
	if fifo := os.Getenv(guardedVar); fifo != "" {
		inBackground(t, t.TempDir(), `exec 9> "$`+guardedVar+`"; sleep 600; true`, nil)
		select {} // until it is killed
	}
	fifo := filepath.Join(t.TempDir(), "running")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBackgroundEnds$")
	child.Env = append(os.Environ(), guardedVar+"="+fifo, "TMPDIR="+t.TempDir())
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	running, err := os.Open(fifo) // blocks until the command has opened the FIFO
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // an error, because the child was killed
	ended := make(chan error, 1)
	go func() { _, err := running.Read(make([]byte, 1)); ended <- err }() // returns io.EOF when no process has the FIFO open
	select {
	case err := <-ended:
		if !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the command still runs 30 s after its test was killed")
	}
}

// printed returns the command's output so far.
func (b *background) printed() string {
	raw, _ := os.ReadFile(b.out.Name()) // an error means no output yet
	return string(raw)
}

package armature_test

import (
	"context"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
)

// checkout copies the project into an empty folder, as a new user has it.
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

// TestCommands runs the first command of README.md, what it prints to be pasted, and the commands of
// docs/tutorial.md, as they stand there, in a new checkout: only ports are others, as several tests
// run at once.
func TestCommands(t *testing.T) {
	t.Parallel()
	readTree(t) // it needs every package of the module
	dir := checkout(t)
	t.Run("README", func(t *testing.T) { t.Parallel(); readme(t, dir) })
	t.Run("tutorial", func(t *testing.T) { t.Parallel(); tutorial(t, dir) })
}

// readme starts nova-mini, and pastes the commands that it prints.
func readme(t *testing.T, dir string) {
	t.Helper()
	const command = "go run ./examples/nova-mini"
	if !strings.Contains(read(t, "README.md"), "\n    "+command+" ") {
		t.Fatalf("README.md does not have %s", command)
	}
	running := inBackground(t, dir, command, []string{"OS_DEFAULT__OSAPI_COMPUTE_LISTEN_PORT=0", "TMPDIR=" + t.TempDir()})
	var paste []string
	for end := time.Now().Add(3 * time.Minute); len(paste) < 3; { // it is compiled first
		if time.Now().After(end) {
			t.Fatalf("%s does not print commands: %s", command, running.printed())
		}
		<-time.After(100 * time.Millisecond)
		paste = regexp.MustCompile(`(?m)^  (.*)$`).FindAllString(running.printed(), -1)
	}
	last := paste[2]
	out, err := sh(t, dir, strings.Join(paste[:2], "\n")+"\nfor i in $(seq 100); do"+last+" | grep -q ACTIVE && echo built && break; sleep 0.1; done")
	if err != nil || !strings.Contains(out, "built") {
		t.Errorf("%v: %s", err, out)
	}
}

// tutorial starts hello twice, and asks what a reader asks.
func tutorial(t *testing.T, dir string) {
	t.Helper()
	raw, err := os.ReadFile("docs/tutorial.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]string{}
	for _, b := range regexp.MustCompile("(?s)```([a-z]+)\n(.*?)```").FindAllStringSubmatch(string(raw), -1) {
		blocks[b[1]] = append(blocks[b[1]], b[2])
	}
	if len(blocks["sh"]) != 2 || len(blocks["console"]) != 2 || len(blocks["ini"]) != 1 {
		t.Fatalf("there are %d commands, %d questions, %d files", len(blocks["sh"]), len(blocks["console"]), len(blocks["ini"]))
	}
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("curl is not installed: the commands cannot be tried")
		}
		t.Skip("curl is not installed")
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	const fixed = "127.0.0.1:8780"
	file := strings.NewReplacer(fixed, addr,
		"rabbit://guest:guest@127.0.0.1:5672/", strings.Replace(envtest.URL(t, testenv.AMQPVar), "amqp://", "rabbit://", 1),
		"mysql://hello:secret@127.0.0.1:3306/hello", dbtest.MySQL(t)).Replace(blocks["ini"][0]) + "control_exchange = hello-commands\n"
	if err := os.WriteFile(filepath.Join(dir, "hello-1.conf"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, command := range blocks["sh"] {
		var env []string
		if i == 0 {
			env = append(env, "OS_DEFAULT__LISTEN="+addr)
		}
		running := inBackground(t, dir, command, env)
		for end := time.Now().Add(3 * time.Minute); ; { // it is compiled first
			out, err := sh(t, dir, "curl -sf http://"+addr+"/readyz")
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: it is not ready: %s\n%s", command, out, running.printed())
			}
			<-time.After(100 * time.Millisecond)
		}
		for n, want := range []string{"202 Accepted", "'' is too short"} {
			question := strings.ReplaceAll(blocks["console"][n], fixed, addr)
			if out, err := sh(t, dir, question); err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v, %s; want %s", question, err, out, want)
			}
		}
		running.stop()
	}
	if _, err := os.Stat(filepath.Join(dir, "hello.db")); err != nil {
		t.Errorf("the first command keeps its orders: %v", err)
	}
}

func sh(t *testing.T, dir, command string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", command)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// background is a command that runs.
type background struct {
	cmd  *exec.Cmd
	out  *os.File
	once sync.Once
}

// inBackground runs a command as a shell does, until it is stopped or the test ends.
func inBackground(t *testing.T, dir, command string, env []string) *background {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "printed"))
	if err != nil {
		t.Fatal(err)
	}
	b := &background{cmd: exec.CommandContext(context.Background(), "sh", "-euc", command), out: out}
	b.cmd.Dir, b.cmd.Stdout, b.cmd.Stderr = dir, out, out
	b.cmd.Env = append(os.Environ(), env...)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.stop()
		_ = out.Close()
	})
	return b
}

// stop stops it as Ctrl-C does.
func (b *background) stop() {
	b.once.Do(func() {
		_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGINT) // it may have ended
		_ = b.cmd.Wait()                                     // it was interrupted
	})
}

// printed returns what it has printed.
func (b *background) printed() string {
	raw, _ := os.ReadFile(b.out.Name()) // else there is nothing yet
	return string(raw)
}

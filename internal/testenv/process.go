package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is a program in a process group of its own, which the kernel kills
// when the process that started it dies (both on Linux only). Its methods are
// safe for concurrent use.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts cmd, whose SysProcAttr it sets.
func Start(cmd *exec.Cmd) (*Process, error) {
	isolate(cmd)
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 5 * time.Second // a grandchild may hold the output open
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// The kernel sends the parent-death signal when the thread that forked
		// ends, not the process: this one must last as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the program ended, as [exec.Cmd.Wait] does. It must be called
// after Done is closed.
func (p *Process) Err() error {
	if p.err == nil {
		return fmt.Errorf("%s: exit status 0", filepath.Base(p.cmd.Path))
	}
	return fmt.Errorf("%s: %w", filepath.Base(p.cmd.Path), p.err)
}

// ExitCode returns the program's exit code, 128 plus the signal's number if a
// signal ended it. It must be called after Done is closed.
func (p *Process) ExitCode() int {
	st := p.cmd.ProcessState
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// PID returns the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig to the program alone; [Process.SignalGroup] to its whole
// group.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop sends SIGTERM to the program, kills its group when it has not ended
// after grace or when ctx ends, and waits for it.
func (p *Process) Stop(ctx context.Context, grace time.Duration) {
	_ = p.Signal(sigTerm)
	_ = p.Signal(sigResume)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
	case <-ctx.Done():
	}
	p.Kill()
}

// Kill kills the program's group and waits for the program.
func (p *Process) Kill() {
	p.SignalGroup(os.Kill)
	<-p.done
}

// freePort returns a port of 127.0.0.1 on which nobody listens. It takes one
// below the range from which the system takes ports for outgoing connections:
// there, a client's connection could take the port while a daemon is down, and
// a client that dials a dead port could even reach itself.
func freePort() (int, error) {
	const low = 15000
	high := 32000
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if first, err := strconv.Atoi(strings.Fields(string(raw) + " x")[0]); err == nil && first > low+1000 {
			high = first
		}
	}
	var last error
	for range 100 {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(high-low)))
		if err != nil {
			return 0, err
		}
		port := low + int(n.Int64())
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))) //nolint:noctx // listening on loopback does not block
		if err != nil {
			last = err
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1: %w", last)
}

// Missing returns the Debian packages that the services need and that are not
// installed.
func Missing() []string {
	var missing []string
	_, err1 := findRabbitMQ()
	_, err2 := findEPMD()
	if err1 != nil || err2 != nil {
		missing = append(missing, "rabbitmq-server")
	}
	if _, err := findNATS(); err != nil {
		missing = append(missing, "nats-server")
	}
	_, err1 = findMariaDB()
	_, err2 = findInstallDB()
	if err1 != nil || err2 != nil {
		missing = append(missing, "mariadb-server")
	}
	if _, err := findKeystone(); err != nil {
		missing = append(missing, keystonePackage)
	}
	return append(missing, missingForGuests()...)
}

// Debian's /usr/sbin/rabbitmq-server insists on becoming the user rabbitmq, so
// the one behind it comes first.
func findRabbitMQ() (string, error) {
	return find("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
}

func findEPMD() (string, error) {
	return find("rabbitmq-server", "epmd", "/usr/lib/erlang/erts-*/bin/epmd", "/usr/lib/erlang/bin/epmd")
}

func findNATS() (string, error) { return find("nats-server", "nats-server") }

func findMariaDB() (string, error) { return find("mariadb-server", "mariadbd", "mysqld") }

func findInstallDB() (string, error) {
	return find("mariadb-server", "mariadb-install-db", "mysql_install_db")
}

// find returns the first of the names that exists: a name with a slash as it
// is (it may be a glob), another in PATH and where servers are kept.
func find(pkg string, names ...string) (string, error) {
	for _, name := range names {
		if strings.Contains(name, "/") {
			if m, _ := filepath.Glob(name); len(m) > 0 {
				return m[len(m)-1], nil
			}
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
		for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s (package %s): %w", names[0], pkg, ErrMissing)
}

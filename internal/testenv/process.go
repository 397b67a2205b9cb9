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

// Process is a running program. On Linux it has a process group of its own, and the
// kernel kills the program when the process that started it dies. The methods are safe for
// concurrent use.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts cmd. It sets cmd.SysProcAttr, and cmd.WaitDelay if that is 0.
func Start(cmd *exec.Cmd) (*Process, error) {
	isolateProcess(cmd)
	if cmd.WaitDelay == 0 {
		cmd.WaitDelay = 5 * time.Second // a grandchild may keep the output open
	}
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(p.done)
		// The kernel sends the parent-death signal when the thread that started the
		// child ends, and not when the process ends. So this thread must last as long
		// as the child.
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

// Done returns a channel that is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns why the program has ended: the error of [exec.Cmd.Wait], or an error that says exit status 0. The result is
// never nil. Call Err only after Done is closed.
func (p *Process) Err() error {
	if p.err == nil {
		return fmt.Errorf("%s: exit status 0", filepath.Base(p.cmd.Path))
	}
	return fmt.Errorf("%s: %w", filepath.Base(p.cmd.Path), p.err)
}

// ExitCode returns the program's exit code, or 128 plus the number of the signal that
// ended it. Call it only after Done is closed.
func (p *Process) ExitCode() int {
	st := p.cmd.ProcessState
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// PID returns the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends sig only to the program. [Process.SignalGroup] sends it to the whole group.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop sends SIGTERM to the program, and waits for its end: at most for the duration grace, and not longer than until ctx
// ends. Then it kills the processes of the program's group that are left.
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

// FreePort returns a port of 127.0.0.1 that no program uses. The port is below the range of ports
// for outgoing connections. While a daemon is down, an outgoing connection could take the daemon's
// port if it were in that range. A client that dials a port in that range could even connect to
// itself.
func FreePort() (int, error) {
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

// Missing returns the Debian packages that the services need and that are not installed. The result is empty if all are
// installed. NATS is not in the result, because its package may be older than 2.10, see [CheckNATS].
func Missing() []string {
	var missing []string
	_, err1 := findRabbitMQ()
	_, err2 := findEPMD()
	if err1 != nil || err2 != nil {
		missing = append(missing, "rabbitmq-server")
	}
	_, err1 = findMariaDB()
	_, err2 = findInstallDB()
	if err1 != nil || err2 != nil {
		missing = append(missing, "mariadb-server")
	}
	if _, err := findKeystone(); err != nil {
		missing = append(missing, keystonePackage)
	}
	if _, err := findGlance(); err != nil {
		missing = append(missing, glancePackage)
	}
	if _, err := findNeutron(); err != nil {
		missing = append(missing, neutronPackage)
	}
	return append(missing, missingForGuests()...)
}

// findRabbitMQ prefers the script in /usr/lib, because Debian's /usr/sbin/rabbitmq-server
// changes to the user rabbitmq.
func findRabbitMQ() (string, error) {
	return findProgram("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
}

func findEPMD() (string, error) {
	return findProgram("rabbitmq-server", "epmd", "/usr/lib/erlang/erts-*/bin/epmd", "/usr/lib/erlang/bin/epmd")
}

// CheckNATS returns an error that says what to do if the program nats-server is not found.
func CheckNATS() error {
	if _, err := findNATS(); err != nil {
		return fmt.Errorf("%w: in a clone of Armature, make bin/testenv builds it", err)
	}
	return nil
}

func findNATS() (string, error) { return findProgram("nats-server", "nats-server") }

func findMariaDB() (string, error) { return findProgram("mariadb-server", "mariadbd", "mysqld") }

func findInstallDB() (string, error) {
	return findProgram("mariadb-server", "mariadb-install-db", "mysql_install_db")
}

// findProgram returns the path of the first name that exists. A name with a slash is a path, or a
// glob; any other name is looked up in PATH and in the usual directories of servers.
func findProgram(pkg string, names ...string) (string, error) {
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

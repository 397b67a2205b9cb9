// Package testenv starts private instances of RabbitMQ, NATS, MariaDB, Keystone, Glance, Neutron and
// libvirt for tests, from the programs that are installed on the machine. Each instance
// has its own data directory, free ports on loopback, and its own node name. The
// package never touches the services of the system.
//
//	s, err := testenv.MariaDB(ctx, dir, io.Discard)
//	defer s.Stop(context.WithoutCancel(ctx))
//	d, err := db.Open(ctx, db.Config{URL: s.URL + "mysql"})
//
// The program internal/testenv/run starts RabbitMQ, NATS and MariaDB, and executes a command
// with their URLs in its environment. Package envtest gives a test these URLs, or an
// instance of its own that the test may kill and restart.
package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// The environment variables with the URLs of the services for tests.
const (
	AMQPVar  = "ARMATURE_TEST_AMQP_URL"
	NATSVar  = "ARMATURE_TEST_NATS_URL"
	MySQLVar = "ARMATURE_TEST_MYSQL_URL"
)

const (
	startTimeout = 120 * time.Second // from the start until the daemon answers
	stopGrace    = 30 * time.Second  // between SIGTERM and SIGKILL
	probeTimeout = 2 * time.Second   // for one attempt to reach the daemon
	probeEvery   = 50 * time.Millisecond
	portAttempts = 5 // how many ports are tried if other programs take them first
)

// ErrMissing means that a program is not installed. errors.Is matches it in the errors of
// [RabbitMQ], [NATS], [MariaDB], [Keystone], [Glance], [Neutron], [Libvirt], [GuestImage] and [Promtool].
var ErrMissing = errors.New("not installed")

// errPort means that another program has taken the daemon's port.
var errPort = errors.New("the port is in use by another program")

// Service is a running daemon. Its methods are safe for concurrent use. The process that started the daemon must call
// Stop. If that process dies without this call, the kernel kills the daemon (on Linux only).
type Service struct {
	// Name and Version are the name and the version of the product, such as "RabbitMQ" and "3.10.8".
	Name, Version string
	// URL has the address, the user and a generated password. The URLs of RabbitMQ and
	// MariaDB end in "/".
	URL string
	// Port is the port on 127.0.0.1. Restart keeps it.
	Port int

	launch func() (*exec.Cmd, error)                  // returns the daemon's command, the same at each start
	probe  func(ctx context.Context) (string, error)  // asks the daemon for its version
	extra  func(ctx context.Context, stop bool) error // starts or stops a helper process of the daemon; may be nil
	ctl    func(args []string) (*exec.Cmd, error)     // returns an operator's command; nil if the product has none
	out    *tail

	mu   sync.Mutex
	proc *Process // nil while the daemon is stopped
}

// Done returns a channel that is closed when the daemon's current process has ended, for
// any reason. Restart starts a new process, with a new channel. After Stop and Kill the
// channel is closed.
func (s *Service) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		ended := make(chan struct{})
		close(ended)
		return ended
	}
	return s.proc.Done()
}

// Stop asks the daemon to end, and waits for its end. It kills the daemon after 30 s, or
// when ctx ends. The daemon's files stay in its directory. If the daemon had died before, Stop
// returns an error with the end of the log. Stop of a stopped service does
// nothing.
func (s *Service) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.stop(ctx)
	if s.extra != nil {
		err = errors.Join(err, s.extra(ctx, true))
	}
	return err
}

func (s *Service) stop(ctx context.Context) error {
	if s.proc == nil {
		return nil
	}
	p := s.proc
	s.proc = nil
	select {
	case <-p.Done():
		return fmt.Errorf("%s died before it was stopped: %w%s", s.Name, p.Err(), s.out)
	default:
	}
	p.Stop(ctx, stopGrace)
	return nil
}

// Kill ends the daemon with SIGKILL, like a crash, and waits for its end. The
// connections of its clients are reset. Restart starts it again.
func (s *Service) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.Kill()
		s.proc = nil
	}
}

// Restart stops the daemon if it runs, and starts it again with the same port and data.
// It returns when the daemon answers, or with an error after 120 s.
func (s *Service) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.stop(ctx), s.start(ctx))
}

// Pause stops the daemon's execution with SIGSTOP: connections stay open, but get no
// answers, as from a machine that hangs. Pause returns when the last thread has stopped,
// or fails after 10 s. Resume continues the daemon.
func (s *Service) Pause() error {
	if err := s.signal(sigPause); err != nil {
		return err
	}
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	for p != nil && !p.paused() {
		select {
		case <-p.Done():
			return fmt.Errorf("pause %s: it died: %w%s", s.Name, p.Err(), s.out)
		case <-limit.C:
			return fmt.Errorf("pause %s: threads still run 10 s after SIGSTOP", s.Name)
		case <-tick.C:
		}
	}
	return nil
}

// Resume continues the daemon after a Pause.
func (s *Service) Resume() error { return s.signal(sigResume) }

func (s *Service) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return fmt.Errorf("%s is stopped", s.Name)
	}
	return s.proc.Signal(sig)
}

// Ctl runs rabbitmqctl on the broker with the arguments, such as
// "close_all_connections", "reason", and returns its output. It takes one or two
// seconds. For other services it fails.
func (s *Service) Ctl(ctx context.Context, args ...string) (string, error) {
	if s.ctl == nil {
		return "", fmt.Errorf("%s has no control program: only RabbitMQ has one", s.Name)
	}
	cmd, err := s.ctl(args)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := Start(cmd)
	if err != nil {
		return "", err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Kill()
	}
	if p.ExitCode() != 0 {
		return out.String(), fmt.Errorf("control %s: %s: %w: %s", s.Name, strings.Join(args, " "), p.Err(), out.String())
	}
	return out.String(), nil
}

// startOnFreePort starts a daemon, and returns when it answers. The function create prepares the daemon for a free port. If
// another program takes the port before the daemon listens, startOnFreePort tries again with another port.
func startOnFreePort(ctx context.Context, create func() (*Service, error)) (*Service, error) {
	for attempt := 1; ; attempt++ {
		s, err := create()
		if err != nil {
			return nil, err
		}
		switch err = s.start(ctx); {
		case err == nil:
			return s, nil
		case attempt == portAttempts || !errors.Is(err, errPort):
			return nil, err
		}
	}
}

// start starts the daemon, and returns when the daemon answers. After an error no process of the daemon is left.
func (s *Service) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if s.extra != nil {
		if err := s.extra(ctx, false); err != nil {
			return err
		}
	}
	cmd, err := s.launch()
	if err != nil {
		return err
	}
	s.out.reset()
	cmd.Stdout, cmd.Stderr = s.out, s.out
	if s.proc, err = Start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	if err := s.await(ctx); err != nil {
		s.proc.Kill()
		s.proc = nil
		if s.extra != nil {
			err = errors.Join(err, s.extra(ctx, true))
		}
		return err
	}
	return nil
}

// await waits until the daemon answers.
func (s *Service) await(ctx context.Context) error {
	begin := time.Now()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		v, err := s.probe(attempt)
		cancel()
		if err == nil {
			s.Version = v
			return nil
		}
		select {
		case <-s.proc.Done():
			if s.out.has("address already in use", "eaddrinuse", "another mysqld server running on port") {
				return fmt.Errorf("start %s on port %d: %w%s", s.Name, s.Port, errPort, s.out)
			}
			return fmt.Errorf("%s ended at its start: %w%s", s.Name, s.proc.Err(), s.out)
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer on 127.0.0.1:%d after %v (%w): %w%s",
				s.Name, s.Port, time.Since(begin).Round(time.Second), context.Cause(ctx), err, s.out)
		case <-tick.C:
		}
	}
}

// tail forwards a daemon's output to next, and keeps the last 8 KiB for errors.
type tail struct {
	next io.Writer
	mu   sync.Mutex
	buf  []byte
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return t.next.Write(p)
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = nil
}

func (t *tail) has(texts ...string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	low := bytes.ToLower(t.buf)
	for _, text := range texts {
		if bytes.Contains(low, []byte(text)) {
			return true
		}
	}
	return false
}

// String returns the last 20 lines, indented, after a line break.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.TrimSpace(string(t.buf))
	if text == "" {
		return ""
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-20):]
	return "\n  | " + strings.Join(lines, "\n  | ")
}

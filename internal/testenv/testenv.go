// Package testenv starts private instances of the machine's RabbitMQ, NATS,
// MariaDB, Keystone and libvirt for tests: own data directory, free loopback ports, own node name.
// It never touches the services of the system.
//
//	s, err := testenv.MariaDB(ctx, dir, io.Discard)
//	defer s.Stop(context.WithoutCancel(ctx))
//	d, err := db.Open(ctx, db.Config{URL: s.URL + "mysql"})
//
// The program in the directory run starts them and runs a command with their
// URLs in its environment. Tests take the URLs, or an instance of their own to
// kill and restart, from package envtest.
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

// The environment variables in which tests find the services.
const (
	AMQPVar  = "ARMATURE_TEST_AMQP_URL"
	NATSVar  = "ARMATURE_TEST_NATS_URL"
	MySQLVar = "ARMATURE_TEST_MYSQL_URL"
)

const (
	startTimeout = 120 * time.Second // until the daemon answers
	stopGrace    = 30 * time.Second  // between SIGTERM and SIGKILL
	probeTimeout = 2 * time.Second   // of one attempt to reach it
	probeEvery   = 50 * time.Millisecond
	portTries    = 5 // how often a race for a port may be lost
)

// ErrMissing is in the error of [RabbitMQ], [NATS] and [MariaDB] when the
// programs are not installed.
var ErrMissing = errors.New("not installed")

// errPort means that somebody else took the port that the daemon was to use.
var errPort = errors.New("port taken")

// Service is a running daemon. Its methods are safe for concurrent use. Whoever
// started it calls Stop; if the process that started it dies before, the kernel
// kills the daemon (on Linux).
type Service struct {
	// Name and Version are the product's, such as "RabbitMQ", "3.10.8".
	Name, Version string
	// URL has the address, the user and a generated password. Those of RabbitMQ
	// and MariaDB end in "/".
	URL string
	// Port is the port on 127.0.0.1.
	Port int

	launch func() (*exec.Cmd, error)                  // the daemon's command, the same at each start
	probe  func(ctx context.Context) (string, error)  // asks it for its version
	extra  func(ctx context.Context, stop bool) error // starts or stops what the daemon needs; may be nil
	ctl    func(args []string) (*exec.Cmd, error)     // an operator's command; nil if there is none
	out    *tail

	mu   sync.Mutex
	proc *Process // nil when it is stopped
}

// Done is closed when the daemon has ended, by itself or not. It is that of the
// daemon that runs now: Restart starts another one. After Stop and Kill it is a
// closed channel.
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

// Stop asks the daemon to end, kills it when it has not done so after 30
// seconds or when ctx ends, and waits until it is gone. What it wrote stays in
// its directory. The error says that the daemon had died before it was asked,
// with the end of its log. Stop of a stopped service does nothing.
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

// Kill ends the daemon with SIGKILL, as a crash would, and waits until it is
// gone. Clients see their connections reset. Restart brings it back.
func (s *Service) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		s.proc.Kill()
		s.proc = nil
	}
}

// Restart stops the daemon if it runs and starts it again on the same port and
// the same data. It returns when the daemon answers, or after 120 seconds.
func (s *Service) Restart(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.stop(ctx), s.start(ctx))
}

// Pause stops the daemon in its tracks with SIGSTOP: connections stay open and
// nothing answers, as on a hung machine. It returns when the last thread has
// stopped, or fails after 10 seconds. Resume lets it go on.
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
			return fmt.Errorf("%s died when it was paused: %w%s", s.Name, p.Err(), s.out)
		case <-limit.C:
			return fmt.Errorf("%s has threads that run 10 s after SIGSTOP", s.Name)
		case <-tick.C:
		}
	}
	return nil
}

// Resume ends a Pause.
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
// "close_all_connections", "reason", and returns what it printed. It takes a
// second or two. Other services have nothing of the kind.
func (s *Service) Ctl(ctx context.Context, args ...string) (string, error) {
	if s.ctl == nil {
		return "", fmt.Errorf("%s has no program to control it", s.Name)
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

// start returns when the daemon answers. If it does not, nothing of it is left.
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

func (s *Service) await(ctx context.Context) error {
	begin := time.Now()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, probeTimeout)
		v, err := s.probe(try)
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

// tail passes a daemon's output on and keeps its end for error messages.
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

// String returns the last lines, indented, on lines of their own.
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

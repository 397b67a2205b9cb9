// Run starts a private RabbitMQ, NATS and MariaDB, and runs a command with their URLs in
// its environment. It stops the services when the command has ended, for any reason, and
// exits with the command's exit code.
//
//	go run ./internal/testenv/run -- go test ./...
//
// As root on Debian or Ubuntu it installs missing packages with apt-get. If the directory of this program has a program
// nats-server, such as the one that `make bin/testenv` builds, Run uses it instead of the nats-server of the machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/armature-go/armature/internal/testenv"
)

// stopTimeout is how long the command may take to end after the first signal, and how long
// the services may take to stop.
const stopTimeout = 30 * time.Second

func main() {
	testenv.EndWithParent()
	if self, err := os.Executable(); err == nil {
		_ = os.Setenv("PATH", filepath.Dir(self)+string(os.PathListSeparator)+os.Getenv("PATH")) // fails only if the name or the value has a NUL
	}
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 || len(args[0]) > 0 && args[0][0] == '-' {
		fmt.Fprintln(os.Stderr, "usage: testenv -- COMMAND [ARGUMENT...]\nRuns the command with a private RabbitMQ, NATS and MariaDB, whose URLs are in its environment.")
		os.Exit(2)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code, err := run(args, signals)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run runs the command args, and returns its exit code.
func run(args []string, signals <-chan os.Signal) (code int, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if err := installMissing(ctx); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "armature-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	up := make(chan struct{})
	all := make([]started, len(services))
	go func() {
		defer close(up)
		var wg sync.WaitGroup
		for i, s := range services {
			wg.Go(func() { all[i] = start(ctx, s.start, filepath.Join(dir, s.dir)) })
		}
		wg.Wait()
	}()
	select {
	case <-up:
	case sig := <-signals:
		cancel(fmt.Errorf("stopped by signal: %v", sig))
		<-up
	}
	defer func() { err = errors.Join(err, stop(all)) }()
	for _, s := range all {
		err = errors.Join(err, s.err)
	}
	if err != nil {
		return 1, err
	}
	env := os.Environ()
	for i, s := range all {
		fmt.Fprintf(os.Stderr, "testenv: %s %s on 127.0.0.1:%d, started in %.1f s\n",
			s.service.Name, s.service.Version, s.service.Port, s.took.Seconds())
		env = append(env, services[i].env+"="+s.service.URL)
	}

	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx,gosec // signals stop it; running the given command is the purpose
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = env
	p, err := testenv.Start(cmd)
	if err != nil {
		return 1, err
	}
	return follow(p, signals), nil
}

type starter = func(context.Context, string, io.Writer) (*testenv.Service, error)

var services = []struct {
	dir, env string
	start    starter
}{
	{"rabbitmq", testenv.AMQPVar, testenv.RabbitMQ},
	{"nats", testenv.NATSVar, testenv.NATS},
	{"mariadb", testenv.MySQLVar, testenv.MariaDB},
}

type started struct {
	service *testenv.Service
	err     error
	took    time.Duration
}

func start(ctx context.Context, f starter, dir string) started {
	begin := time.Now()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return started{err: err}
	}
	s, err := f(ctx, dir, io.Discard)
	return started{s, err, time.Since(begin)}
}

// follow waits for the command. It forwards the first signal to the command's process group.
// A second signal, or stopTimeout, kills the group. Processes that the command leaves behind are
// also killed.
func follow(p *testenv.Process, signals <-chan os.Signal) int {
	defer p.SignalGroup(os.Kill)
	select {
	case <-p.Done():
		return p.ExitCode()
	case sig := <-signals:
		p.SignalGroup(sig)
	}
	t := time.NewTimer(stopTimeout)
	defer t.Stop()
	select {
	case <-p.Done():
	case <-signals:
	case <-t.C:
	}
	p.Kill()
	return max(p.ExitCode(), 1) // an interrupted run is not a pass
}

func stop(all []started) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, s := range all {
		if s.service != nil {
			wg.Go(func() { errs[i] = s.service.Stop(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

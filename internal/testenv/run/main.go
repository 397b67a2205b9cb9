// Run starts a private RabbitMQ and a private MariaDB, runs a command with
// their URLs in its environment, and stops them when the command ends, however
// it ends. It exits with the command's code.
//
//	go run ./internal/testenv/run -- go test ./...
//
// As root on Debian or Ubuntu it installs what is missing with apt-get.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/armature-go/armature/internal/testenv"
)

// stopTime is how long the command may take to end after a first signal, and
// how long the services may take.
const stopTime = 30 * time.Second

func main() {
	testenv.EndWithParent()
	args := os.Args[1:]
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: go run ./internal/testenv/run -- COMMAND [ARGUMENT...]")
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

// run returns the command's exit code.
func run(args []string, signals <-chan os.Signal) (code int, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if err := install(ctx); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "armature-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	up := make(chan struct{})
	var amqp, mysql started
	go func() {
		defer close(up)
		var wg sync.WaitGroup
		wg.Go(func() { amqp = start(ctx, testenv.RabbitMQ, dir, "rabbitmq") })
		wg.Go(func() { mysql = start(ctx, testenv.MariaDB, dir, "mariadb") })
		wg.Wait()
	}()
	select {
	case <-up:
	case sig := <-signals:
		cancel(fmt.Errorf("stopped by signal: %v", sig))
		<-up
	}
	defer func() { err = errors.Join(err, stop(amqp.service, mysql.service)) }()
	if err := errors.Join(amqp.err, mysql.err); err != nil {
		return 1, err
	}
	for _, s := range []started{amqp, mysql} {
		fmt.Fprintf(os.Stderr, "testenv: %s %s on 127.0.0.1:%d, started in %.1f s\n",
			s.service.Name, s.service.Version, s.service.Port, s.took.Seconds())
	}

	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx,gosec // it is stopped by signals; to run what it is told is its purpose
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), testenv.AMQPVar+"="+amqp.service.URL, testenv.MySQLVar+"="+mysql.service.URL)
	p, err := testenv.Start(cmd)
	if err != nil {
		return 1, err
	}
	return follow(p, signals), nil
}

type started struct {
	service *testenv.Service
	err     error
	took    time.Duration
}

func start(ctx context.Context, f func(context.Context, string, io.Writer) (*testenv.Service, error), dir, name string) started {
	begin := time.Now()
	dir = dir + "/" + name
	if err := os.Mkdir(dir, 0o700); err != nil {
		return started{err: err}
	}
	s, err := f(ctx, dir, io.Discard)
	return started{s, err, time.Since(begin)}
}

// follow waits for the command. The first signal goes on to its process group;
// the second, or none within stopTime, kills the group. What the command left
// running is killed, too.
func follow(p *testenv.Process, signals <-chan os.Signal) int {
	defer p.SignalGroup(os.Kill)
	select {
	case <-p.Done():
		return p.ExitCode()
	case sig := <-signals:
		p.SignalGroup(sig)
	}
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-p.Done():
	case <-signals:
	case <-t.C:
	}
	p.Kill()
	return max(p.ExitCode(), 1) // an interrupted run is not a pass
}

func stop(services ...*testenv.Service) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	errs := make([]error, len(services))
	var wg sync.WaitGroup
	for i, s := range services {
		if s != nil {
			wg.Go(func() { errs[i] = s.Stop(ctx) })
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Run starts a private RabbitMQ, NATS and MariaDB, and runs a command with their URLs in
// its environment. It stops the services when the command has ended, for any reason, and
// exits with the command's exit code.
//
//	bin/testenv -- go test ./...
//
// As root on Debian or Ubuntu, Run installs missing packages with apt-get, but not NATS, whose packages may be too old. If the directory of
// this program has a program nats-server, such as the one that `make bin/testenv` builds, Run uses it instead of the nats-server of the machine.
//
// With --only, Run starts only the services that are named, needs only their programs, and installs nothing. Then the command may be left out:
// Run prints the options of a component with the URLs, and waits for Ctrl-C. This is `make services`:
//
//	go run ./internal/testenv/run --only rabbitmq,mariadb
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
	"slices"
	"strings"
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
	chosen, args, err := parseArgs(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "testenv: %v\n%s\n", err, usage)
		os.Exit(2)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	code, err := runServices(chosen, args, signals)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

const usage = `usage: testenv -- COMMAND [ARGUMENT...]
       testenv --only SERVICE[,SERVICE...] [-- COMMAND [ARGUMENT...]]
Runs the command with a private RabbitMQ, NATS and MariaDB, whose URLs are in its environment.
With --only it starts only these services: rabbitmq, nats, mariadb. It installs nothing. Without
a command it prints the options of a component with the URLs, and waits for Ctrl-C.`

// parseArgs returns the services that are named, or nil without --only, and the command.
func parseArgs(args []string) (chosen []product, command []string, err error) {
	if len(args) > 0 && args[0] == "--only" {
		if len(args) == 1 {
			return nil, nil, errors.New("--only has no value")
		}
		if chosen, err = chooseProducts(args[1]); err != nil {
			return nil, nil, fmt.Errorf("--only %s: %w", args[1], err)
		}
		args = args[2:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) > 0 && strings.HasPrefix(args[0], "-") {
		return nil, nil, fmt.Errorf("the option %s does not exist here", args[0])
	}
	if len(args) == 0 && chosen == nil {
		return nil, nil, errors.New("the command is missing")
	}
	return chosen, args, nil
}

// chooseProducts returns the products of a list of names, separated by commas.
func chooseProducts(names string) (chosen []product, err error) {
	for name := range strings.SplitSeq(names, ",") {
		named := func(p product) bool { return p.name == name }
		i := slices.IndexFunc(products, named)
		if i < 0 {
			return nil, fmt.Errorf("the service %q does not exist", name)
		}
		if slices.ContainsFunc(chosen, named) {
			return nil, fmt.Errorf("%s is named twice", name)
		}
		chosen = append(chosen, products[i])
	}
	return chosen, nil
}

// runServices runs the command in args with the chosen services, or with all services if none is chosen, and returns the exit code of the command.
// Without a command it waits for a signal.
func runServices(chosen []product, args []string, signals <-chan os.Signal) (code int, err error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	if chosen == nil {
		chosen = products
		if err := installMissing(ctx); err != nil {
			return 1, err
		}
	}
	dir, err := os.MkdirTemp("", "armature-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	up := make(chan struct{})
	all := make([]started, len(chosen))
	go func() {
		defer close(up)
		var wg sync.WaitGroup
		for i, s := range chosen {
			wg.Go(func() { all[i] = startService(ctx, s.start, filepath.Join(dir, s.name)) })
		}
		wg.Wait()
	}()
	select {
	case <-up:
	case sig := <-signals:
		cancel(fmt.Errorf("stopped by signal: %v", sig))
		<-up
	}
	defer func() { err = errors.Join(err, stopServices(all)) }()
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
		env = append(env, chosen[i].env+"="+s.service.URL)
	}
	if len(args) == 0 {
		return 0, serveOptions(ctx, chosen, all, signals)
	}

	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx,gosec // signals stop it; running the given command is the purpose
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = env
	p, err := testenv.Start(cmd)
	if err != nil {
		return 1, err
	}
	return followCommand(p, signals), nil
}

type starter = func(context.Context, string, io.Writer) (*testenv.Service, error)

// product is a service that can be started.
type product struct {
	name, env string
	start     starter
	options   func(ctx context.Context, s *testenv.Service) (string, error) // returns the options of a component
}

var products = []product{
	{"rabbitmq", testenv.AMQPVar, testenv.RabbitMQ, func(_ context.Context, s *testenv.Service) (string, error) {
		return "[DEFAULT]\ntransport_url = " + strings.Replace(s.URL, "amqp://", "rabbit://", 1), nil
	}},
	{"nats", testenv.NATSVar, testenv.NATS, func(_ context.Context, s *testenv.Service) (string, error) {
		return "[DEFAULT]\ntransport_url = " + s.URL, nil
	}},
	{"mariadb", testenv.MySQLVar, testenv.MariaDB, func(ctx context.Context, s *testenv.Service) (string, error) {
		const database = "component"
		return "[database]\nconnection = " + s.URL + database, testenv.CreateDatabase(ctx, s, database)
	}},
}

// serveOptions prints the options of a component that uses the services, and waits for a signal, or until a service dies. It
// returns nil in both cases: the function stop returns the error of a service that has died.
func serveOptions(ctx context.Context, chosen []product, all []started, signals <-chan os.Signal) error {
	died := make(chan struct{}, len(all))
	for i, s := range all {
		text, err := chosen[i].options(ctx, s.service)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(os.Stdout, text); err != nil {
			return err
		}
		go func() { // ends with the service, which is stopped at the end
			<-s.service.Done()
			died <- struct{}{}
		}()
	}
	fmt.Fprintln(os.Stderr, "testenv: the services run until Ctrl-C, which removes their data")
	select {
	case <-signals:
	case <-died: // stop returns the error
	}
	return nil
}

type started struct {
	service *testenv.Service
	err     error
	took    time.Duration
}

func startService(ctx context.Context, f starter, dir string) started {
	begin := time.Now()
	if err := os.Mkdir(dir, 0o700); err != nil { //nolint:gosec // the last part is the name of one of products
		return started{err: err}
	}
	s, err := f(ctx, dir, io.Discard)
	return started{s, err, time.Since(begin)}
}

// followCommand waits for the command. It forwards the first signal to the command's process group.
// A second signal, or stopTimeout, kills the group. Processes that the command leaves behind are
// also killed.
func followCommand(p *testenv.Process, signals <-chan os.Signal) int {
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

func stopServices(all []started) error {
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

// Package testenv starts RabbitMQ, NATS, MariaDB and Keystone for the tests of a component, from the programs that are installed on
// the machine. Each instance is private: it has its own data, and a free port on loopback. The services of the machine are not touched.
//
// The shared services of a package's tests:
//
//	func TestMain(m *testing.M) { testenv.Main(m, testenv.MariaDB, testenv.RabbitMQ) }
//
// Packages such as dbtest and rpctest find them. A test that kills a service and starts it again starts a service of
// its own:
//
//	broker := testenv.Start(t, testenv.RabbitMQ)
//	c := componenttest.Start(t, hello, "transport_url="+broker.URL)
//	broker.Kill()
//
// A test whose service is not installed is skipped. If the environment variable CI is set, it fails. On Debian the packages are
// rabbitmq-server, nats-server (2.10 or newer, which Debian 12 does not have), mariadb-server and python3-keystone.
package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/armature-go/armature/internal/testenv"
)

// Kind is a product.
type Kind string

// The products.
const (
	RabbitMQ Kind = "RabbitMQ"
	NATS     Kind = "NATS"
	MariaDB  Kind = "MariaDB"
	Keystone Kind = "Keystone"
)

// product says how a product is started. The field variable is the name of the environment variable with the URL of the shared service.
// Keystone has no such variable.
type product struct {
	start    func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error)
	variable string
}

var products = map[Kind]product{
	RabbitMQ: {func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.RabbitMQ(ctx, dir, log)
	}, testenv.AMQPVar},
	NATS: {func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.NATS(ctx, dir, log)
	}, testenv.NATSVar},
	MariaDB: {func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.MariaDB(ctx, dir, log)
	}, testenv.MySQLVar},
	Keystone: {testenv.Keystone, ""},
}

// Main runs the tests of a package with shared services, and exits with the code of the tests. It is for TestMain. A service whose variable is
// set already, such as ARMATURE_TEST_MYSQL_URL, is used as it is. A service that is not installed is not started. A service that does not
// start ends the process with code 1. The start takes some seconds, and the services are stopped at the end; on Linux even if the process is
// killed. Main panics if a kind does not exist or cannot be shared, which is a programmer's error: Keystone is for [Start].
func Main(m *testing.M, kinds ...Kind) {
	code, err := run(m, kinds)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testenv:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M, kinds []Kind) (code int, err error) {
	for _, k := range kinds {
		if products[k].variable == "" {
			panic(fmt.Sprintf("testenv: Main: %q cannot be shared: want %s, %s or %s", k, RabbitMQ, NATS, MariaDB))
		}
	}
	kinds = slices.DeleteFunc(slices.Clone(kinds), func(k Kind) bool { return os.Getenv(products[k].variable) != "" })
	if len(kinds) == 0 {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "testenv-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	services, errs := make([]*testenv.Service, len(kinds)), make([]error, len(kinds))
	var wg sync.WaitGroup
	for i, k := range kinds {
		wg.Go(func() {
			own := filepath.Join(dir, string(k))
			if errs[i] = os.Mkdir(own, 0o700); errs[i] == nil {
				services[i], errs[i] = products[k].start(context.Background(), own, io.Discard)
			}
		})
	}
	wg.Wait()
	defer func() {
		for _, s := range services {
			if s != nil {
				err = errors.Join(err, s.Stop(context.Background()))
			}
		}
	}()
	for i, k := range kinds {
		switch {
		case errors.Is(errs[i], testenv.ErrMissing):
			fmt.Fprintln(os.Stderr, "testenv: tests that need it are skipped:", errs[i])
		case errs[i] != nil:
			return 1, fmt.Errorf("start %s: %w", k, errs[i])
		default:
			if err := os.Setenv(products[k].variable, services[i].URL); err != nil {
				return 1, err
			}
		}
	}
	return m.Run(), nil
}

// Service is a service of a test's own. Its methods are for the test's goroutine, and fail the test if they do not succeed.
type Service struct {
	// URL has the address, the user and a generated password. It stays the same after Restart. The URLs of RabbitMQ and MariaDB end in "/",
	// to which the name of a virtual host or of a database is added.
	URL string

	t testing.TB
	s *testenv.Service
}

// Start starts a service for a test, and returns when it answers. It is stopped when the test ends. If the product is not installed, the test is
// skipped, or fails if CI is set.
func Start(t testing.TB, kind Kind) *Service {
	t.Helper()
	p, ok := products[kind]
	if !ok {
		t.Fatalf("testenv: the product %q does not exist: want %s, %s, %s or %s", kind, RabbitMQ, NATS, MariaDB, Keystone)
	}
	s, err := p.start(t.Context(), t.TempDir(), io.Discard)
	if errors.Is(err, testenv.ErrMissing) && os.Getenv("CI") == "" {
		t.Skipf("needs a service of its own: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return &Service{URL: s.URL, t: t, s: s}
}

// Kill ends the service with SIGKILL, like a crash. The connections of its clients are reset.
func (s *Service) Kill() { s.s.Kill() }

// Restart stops the service if it runs, and starts it again with the same port and data. It returns when the service answers.
func (s *Service) Restart() {
	s.t.Helper()
	s.must(s.s.Restart(s.t.Context()))
}

// Pause stops the execution of the service with SIGSTOP: connections stay open and get no answers, as from a machine that hangs.
func (s *Service) Pause() {
	s.t.Helper()
	s.must(s.s.Pause())
}

// Resume ends a pause.
func (s *Service) Resume() {
	s.t.Helper()
	s.must(s.s.Resume())
}

func (s *Service) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

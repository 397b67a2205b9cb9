package envtest

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/armature-go/armature/internal/testenv"
)

// RabbitMQ starts a broker for this test alone. The test may kill and restart the broker. The
// start takes some seconds: a test that only needs a broker uses [URL]. The broker is stopped
// at the end of the test. With -short the test is skipped. If RabbitMQ is not installed,
// the test is skipped, or fails if CI is set. The parameter settings has additional lines
// of rabbitmq.conf.
func RabbitMQ(t testing.TB, settings ...string) *testenv.Service {
	t.Helper()
	skipShort(t)
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.RabbitMQWith(ctx, dir, log, settings...)
	})
}

// NATS works like [RabbitMQ], for a NATS server with JetStream. The start takes a fraction of a
// second. The parameter settings has additional lines of the server's configuration.
func NATS(t testing.TB, settings ...string) *testenv.Service {
	t.Helper()
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.NATSWith(ctx, dir, log, settings...)
	})
}

// MariaDB works like [RabbitMQ], for a database server. The parameter args has additional arguments of the server.
func MariaDB(t testing.TB, args ...string) *testenv.Service {
	t.Helper()
	skipShort(t)
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.MariaDBWith(ctx, dir, log, args...)
	})
}

// Keystone works like [RabbitMQ], for an identity service. The start takes about 10 s. Package
// keystonetest creates users and tokens.
func Keystone(t testing.TB) *testenv.Service {
	t.Helper()
	skipShort(t)
	return start(t, testenv.Keystone)
}

// Glance works like [RabbitMQ], for an image service that authenticates its clients with a Keystone, see testenv.Glance. The start takes some
// seconds. Package keystonetest starts an image service with its user and its entry in the catalog.
func Glance(t testing.TB, keystone string) *testenv.Service {
	t.Helper()
	skipShort(t)
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.Glance(ctx, dir, keystone, log)
	})
}

// Neutron works like [Glance], for a network service in which a port can be bound on each of the hosts, see testenv.Neutron.
func Neutron(t testing.TB, keystone string, hosts ...string) *testenv.Service {
	t.Helper()
	skipShort(t)
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.Neutron(ctx, dir, keystone, hosts, log)
	})
}

// skipShort skips the test with -short: the start of the service takes seconds.
func skipShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a service of its own: skipped with -short")
	}
}

func start(t testing.TB, f func(context.Context, string, io.Writer) (*testenv.Service, error)) *testenv.Service {
	t.Helper()
	s, err := f(t.Context(), t.TempDir(), io.Discard)
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
	return s
}

// Libvirt works like [RabbitMQ], for a libvirtd with the QEMU driver. The guests end with the
// test.
func Libvirt(t testing.TB) *testenv.Service {
	t.Helper()
	skipShort(t)
	dir, err := os.MkdirTemp("", "lv") //nolint:usetesting // a short path, because of the limit of socket paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return start(t, func(ctx context.Context, _ string, log io.Writer) (*testenv.Service, error) {
		return testenv.Libvirt(ctx, dir, log)
	})
}

// GuestImage creates an image for guests at path, see testenv.GuestImage. If a program is
// not installed, the test is skipped, or fails if CI is set.
func GuestImage(t testing.TB, path string) {
	t.Helper()
	err := testenv.GuestImage(t.Context(), path)
	if errors.Is(err, testenv.ErrMissing) && os.Getenv("CI") == "" {
		t.Skipf("needs an image for guests: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Promtool returns the path of promtool, see testenv.Promtool. If promtool is not available, the test is skipped, or fails if CI is set.
func Promtool(t testing.TB) string {
	t.Helper()
	path, err := testenv.Promtool(t.Context(), t.TempDir())
	if errors.Is(err, testenv.ErrMissing) && os.Getenv("CI") == "" {
		t.Skipf("needs promtool: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

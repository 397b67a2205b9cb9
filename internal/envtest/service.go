package envtest

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/armature-go/armature/internal/testenv"
)

// RabbitMQ starts a broker for this test alone, which may kill and restart it.
// It takes seconds: a test that only needs a broker uses [URL]. The broker is
// stopped at the end of the test. If RabbitMQ is not installed the test is
// skipped, or fails when CI is set. With -short it is always skipped. settings are lines of its rabbitmq.conf besides.
func RabbitMQ(t testing.TB, settings ...string) *testenv.Service {
	t.Helper()
	slow(t)
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.RabbitMQWith(ctx, dir, log, settings...)
	})
}

// NATS is like [RabbitMQ] for a NATS server with JetStream. It takes a fraction
// of a second. settings are lines of its configuration besides.
func NATS(t testing.TB, settings ...string) *testenv.Service {
	t.Helper()
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.NATSWith(ctx, dir, log, settings...)
	})
}

// MariaDB is like [RabbitMQ] for a database server. args are arguments of the server besides.
func MariaDB(t testing.TB, args ...string) *testenv.Service {
	t.Helper()
	slow(t)
	return start(t, func(ctx context.Context, dir string, log io.Writer) (*testenv.Service, error) {
		return testenv.MariaDBWith(ctx, dir, log, args...)
	})
}

// Keystone is like [RabbitMQ] for an identity service. It takes ten seconds. Package
// keystonetest makes users and tokens of it.
func Keystone(t testing.TB) *testenv.Service {
	t.Helper()
	slow(t)
	return start(t, testenv.Keystone)
}

// slow skips a test that starts a service which takes seconds, with -short.
func slow(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a service of its own: left out with -short")
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

// Libvirt starts a libvirtd for this test alone, with a driver for QEMU guests, which
// end with the test.
func Libvirt(t testing.TB) *testenv.Service {
	t.Helper()
	slow(t)
	dir, err := os.MkdirTemp("", "lv") //nolint:usetesting // a short name, for the socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return start(t, func(ctx context.Context, _ string, log io.Writer) (*testenv.Service, error) {
		return testenv.Libvirt(ctx, dir, log)
	})
}

// GuestImage makes an image for guests, as testenv.GuestImage does, at path.
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

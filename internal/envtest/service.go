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
// skipped, or fails when CI is set.
func RabbitMQ(t testing.TB) *testenv.Service {
	t.Helper()
	return start(t, testenv.RabbitMQ)
}

// NATS is like [RabbitMQ] for a NATS server with JetStream. It takes a fraction
// of a second.
func NATS(t testing.TB) *testenv.Service {
	t.Helper()
	return start(t, testenv.NATS)
}

// MariaDB is like [RabbitMQ] for a database server.
func MariaDB(t testing.TB) *testenv.Service {
	t.Helper()
	return start(t, testenv.MariaDB)
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

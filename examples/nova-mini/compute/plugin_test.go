package compute_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/armature-go/armature/examples/nova-mini/compute"
)

// recorder is a driver that keeps the arguments of its calls.
type recorder struct {
	compute.Driver

	grace  time.Duration
	events []compute.Event
	wrote  int
	err    error // of the Write that failed
}

func (r *recorder) PowerOff(_ context.Context, _ string, grace time.Duration) error {
	r.grace = grace
	return nil
}

func (r *recorder) Events(_ context.Context, f func(compute.Event) error) error {
	for _, e := range r.events {
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}

// ConsoleLog writes 3 MiB at once.
func (r *recorder) ConsoleLog(ctx context.Context, _ string, _ int, w io.Writer) error {
	r.wrote, r.err = w.Write(make([]byte, 3<<20))
	for r.err == nil && ctx.Err() == nil { // the client is slow
		r.wrote, r.err = w.Write(make([]byte, 3<<20))
	}
	return r.err
}

// serve returns a client of d over gRPC, as for a driver in a program of its own.
func serve(t *testing.T, d compute.Driver) (_ compute.Driver, stop func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.WaitForHandlers(true))
	compute.Kind.Register(s, d)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = conn.Close()
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	return compute.Kind.Client(conn, compute.Kind.Protocol), stop
}

// TestPowerOffGrace: each grace arrives at the driver, rounded up to whole milliseconds; none overflows.
func TestPowerOffGrace(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	c, stop := serve(t, r)
	defer stop()
	longest := time.Duration(math.MaxInt64).Truncate(time.Millisecond)
	for grace, want := range map[time.Duration]time.Duration{
		0: 0, -time.Second: -time.Second, 1: time.Millisecond, 1500 * time.Microsecond: 2 * time.Millisecond, time.Hour: time.Hour,
		math.MaxInt64: math.MaxInt64, math.MaxInt64 - 1: math.MaxInt64, longest: longest, math.MinInt64: -longest,
	} {
		if err := c.PowerOff(t.Context(), "id", grace); err != nil || r.grace != want {
			t.Errorf("grace %v arrived as %v, %v; want %v", grace, r.grace, err, want)
		}
	}
}

// TestEventTime: the time of an event arrives, also if it is zero.
func TestEventTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 23, 7, 38, 13, 5, time.UTC)
	r := &recorder{events: []compute.Event{{Type: compute.EventBegan}, {Type: compute.EventStopped, ServerID: "a", Time: at}}}
	c, stop := serve(t, r)
	defer stop()
	var got []compute.Event
	end := errors.New("end")
	err := c.Events(t.Context(), func(e compute.Event) error {
		if got = append(got, e); len(got) == 2 {
			return end
		}
		return nil
	})
	if !errors.Is(err, end) || !got[0].Time.IsZero() || !got[1].Time.Equal(at) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestConsoleLogWritten: if the client disconnects during a Write, Write returns the number of bytes sent until then.
func TestConsoleLogWritten(t *testing.T) {
	t.Parallel()
	r := &recorder{}
	c, stop := serve(t, r)
	gone := errors.New("gone")
	if err := c.ConsoleLog(t.Context(), "id", 0, failingWriter{gone}); !errors.Is(err, gone) {
		t.Errorf("%v, want the error of the writer", err)
	}
	stop() // waits until the driver's method has returned
	if r.err == nil || r.wrote == 0 || r.wrote%(64<<10) != 0 {
		t.Errorf("Write returned %d, %v; want the number of bytes in the parts that were sent, and an error", r.wrote, r.err)
	}
}

// failingWriter is a writer that accepts nothing.
type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

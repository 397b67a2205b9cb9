package compute_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/armature-go/armature/examples/nova-mini/compute"
)

// recorder is a driver that keeps the arguments of its calls.
type recorder struct {
	compute.Driver

	grace  time.Duration
	events []compute.Event
	wrote  int   // the result of the last Write
	err    error // the error of the last Write

	spec     compute.Spec
	attached compute.Interface
	rescued  []string
}

func (r *recorder) Rescue(_ context.Context, id, imageRef, adminPass string) error {
	r.rescued = []string{id, imageRef, adminPass}
	return nil
}

func (r *recorder) Spawn(_ context.Context, spec compute.Spec) error {
	r.spec = spec
	return nil
}

func (r *recorder) AttachInterface(_ context.Context, _ string, i compute.Interface) error {
	r.attached = i
	return nil
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

// ConsoleLog writes 3 MiB with each call of Write, until a Write fails.
func (r *recorder) ConsoleLog(ctx context.Context, _ string, _ int, w io.Writer) error {
	r.wrote, r.err = w.Write(make([]byte, 3<<20))
	for r.err == nil && ctx.Err() == nil { // more than once, because the client may be slow to disconnect
		r.wrote, r.err = w.Write(make([]byte, 3<<20))
	}
	return r.err
}

// serve serves the driver d over gRPC, as in a driver program, and returns a client of the driver. The function stop stops the server, and waits
// until the driver's methods have returned.
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

// TestPowerOffGrace: the driver gets the grace period, rounded up to whole milliseconds. A very long grace period does not overflow.
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

// TestEventTime: the client gets the time of an event, also a zero time.
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

// TestSpec: all values of a Spec, of an interface and of a rescue arrive at a driver that is a program.
func TestSpec(t *testing.T) {
	t.Parallel()
	want := compute.Spec{
		ID: "id", Name: "n", ProjectID: "p", ImageRef: "i", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 2, DiskGiB: 3}, Metadata: map[string]string{"a": "b"}, InstanceName: "instance-1", EphemeralGiB: 1, SwapMiB: 64,
		Interfaces: []compute.Interface{{
			ID: "port", MAC: "52:54:00:12:34:56", Network: "bridge:b", NetworkID: "net", MTU: 1450, Tag: "t",
			Addresses: []compute.GuestAddress{{Prefix: "10.0.0.5/24", DHCP: true, IPv6Mode: "slaac", Gateway: "10.0.0.1", DNS: []string{"8.8.8.8"}, Routes: []compute.Route{{Destination: "10.1.0.0/16", Gateway: "10.0.0.2"}}}},
		}},
		Hostname: "h", ConfigDrive: true, UserData: "YQ==", PublicKey: "ssh", KeyName: "k", LaunchIndex: 4, Zone: "z", AdminPass: "s", Files: []compute.File{{Path: "/a", Content: []byte("b")}},
	}
	for _, v := range []any{want, want.Interfaces[0], want.Interfaces[0].Addresses[0]} {
		for name, value := range reflect.ValueOf(v).Fields() {
			if value.IsZero() {
				t.Errorf("%T.%s is zero: the test could not see that it is lost", v, name.Name)
			}
		}
	}
	r := &recorder{}
	c, stop := serve(t, r)
	defer stop()
	if err := c.Spawn(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, r.spec); diff != "" {
		t.Errorf("Spawn (-want +got):\n%s", diff)
	}
	if err := c.AttachInterface(t.Context(), "id", want.Interfaces[0]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Interfaces[0], r.attached); diff != "" {
		t.Errorf("AttachInterface (-want +got):\n%s", diff)
	}
	if err := c.Rescue(t.Context(), "id", "cd", "secret"); err != nil || !slices.Equal(r.rescued, []string{"id", "cd", "secret"}) {
		t.Errorf("Rescue: %q, %v", r.rescued, err)
	}
}

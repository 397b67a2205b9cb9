package urlbus_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/urlbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	iface = &rpc.Interface{Name: "echo", Version: rpc.Version{Major: 1}}
	echo  = rpc.Method[string, string]{Interface: iface, Name: "echo", Since: rpc.Version{Major: 1}}
)

// call makes a call over the bus of a URL.
func call(ctx context.Context, url string) (err error) {
	bus, err := urlbus.Open(url, urlbus.Config{Exchange: "urlbus"})
	if err != nil {
		return err
	}
	if err := bus.Start(ctx); err != nil {
		return err
	}
	defer bus.Stop(context.WithoutCancel(ctx))
	if err := bus.Check(ctx); err != nil {
		return err
	}
	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: iface, Host: "a"})
	rpc.Handle(srv, echo, func(_ context.Context, s *string) (*string, error) { return s, nil })
	if err := srv.Start(ctx); err != nil {
		return err
	}
	defer srv.Stop(context.WithoutCancel(ctx))
	c := rpc.NewClient(bus, rpc.ClientConfig{})
	defer c.Close()
	text := "x"
	got, err := rpc.Call(ctx, c, echo, "a", &text)
	if err == nil && *got != "x" {
		err = fmt.Errorf("got %q", *got)
	}
	return err
}

// TestOpen: each kind of URL is a bus that works, with one broker or several.
func TestOpen(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "memory://"} {
		if err := call(t.Context(), url); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
	for name, brokerVar := range map[string]string{"RabbitMQ": testenv.AMQPVar, "NATS": testenv.NATSVar} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := envtest.URL(t, brokerVar)
			if err := call(t.Context(), url); err != nil {
				t.Error(err)
			}
			scheme, rest, _ := strings.Cut(url, "://")
			hosts, vhost, _ := strings.Cut(rest, "/")
			if scheme == "amqp" {
				scheme = "rabbit" // as oslo.messaging has it
				vhost = "/" + vhost
			}
			if err := call(t.Context(), scheme+"://"+hosts+","+hosts+vhost); err != nil {
				t.Errorf("with two brokers: %v", err)
			}
		})
	}
}

// TestRefused: a URL that is wrong is Invalid, and nothing of it is in the error.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"hunter2", "hunter2://a", "kafka://u:hunter2@a", "nats://u:hunter2@a/hunter2", "memory://hunter2", "rabbit://u:hunter2@a b/", "rabbit://"} {
		_, err := urlbus.Open(url, urlbus.Config{})
		if fault.CodeOf(err) != fault.Invalid || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func Example() {
	bus, err := urlbus.Open("memory://", urlbus.Config{Exchange: "volume"})
	if err != nil {
		panic(err)
	}
	fmt.Println(bus.Start(context.Background()), bus.Stop(context.Background()))
	// Output: <nil> <nil>
}

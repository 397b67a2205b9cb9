package urlbus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/urlbus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// brokers maps the name of a broker to the environment variable with its URL.
var brokers = map[string]string{"RabbitMQ": testenv.AMQPVar, "NATS": testenv.NATSVar}

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

// TestOpen: the bus of each kind of URL works, with one broker or several.
func TestOpen(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "memory://"} {
		if err := call(t.Context(), url); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
	for name, brokerVar := range brokers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := envtest.URL(t, brokerVar)
			if err := call(t.Context(), url); err != nil {
				t.Error(err)
			}
			scheme, rest, _ := strings.Cut(url, "://")
			hosts, vhost, _ := strings.Cut(rest, "/")
			if scheme == "amqp" {
				scheme = "rabbit" // the scheme in oslo.messaging
				vhost = "/" + vhost
			}
			if err := call(t.Context(), scheme+"://"+hosts+","+hosts+vhost); err != nil {
				t.Errorf("with two brokers: %v", err)
			}
		})
	}
}

// TestRefused: for a wrong URL, Open returns Invalid, and the error has no part of a password.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"hunter2", "hunter2://a", "kafka://u:hunter2@a", "nats://u:hunter2@a/hunter2", "memory://hunter2", "rabbit://u:hunter2@a b/", "rabbit://", "rabbit://u:hunter2@a:65536/", "rabbit://u:hunter2@a:0/", "nats://u:hunter2@a:65536"} {
		bus, err := urlbus.Open(url, urlbus.Config{})
		if bus != nil {
			t.Errorf("%s: Open returned a bus, want nil", url)
		}
		if fault.CodeOf(err) != fault.Invalid || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// TestSpecialCharacters: a password with characters that have a meaning in a URL is refused, with a text that says what to write, and it works in the form
// that the text says.
func TestSpecialCharacters(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"rabbit://u:hunter2@ss/wo:rd@127.0.0.1:5672/", "rabbit://u:hunter2/ss@127.0.0.1:5672/", "rabbit://u:12/hunter2@127.0.0.1/", "rabbit://u:hunter2?ss@127.0.0.1:5672/",
		"rabbit://u:hunter2#ss@127.0.0.1:5672/", "rabbit://u:hunter2%ss@127.0.0.1/", "nats://u:hunter2@ss/wo:rd@127.0.0.1:4222", "nats://u:hunter2/ss@127.0.0.1",
	} {
		_, err := urlbus.Open(url, urlbus.Config{Exchange: "e"})
		if fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "in a user name or password, write %40 for @, %2F for /, %3A for :, %3F for ?, %23 for # and %25 for %") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", url, err)
		}
	}
	var got urlbus.Broker
	if _, err := urlbus.Open("own-amqp://u:p%40%2F%3A%3F%23%25@h/v%40", urlbus.Config{Exchange: "e", Schemes: map[string]urlbus.Opener{
		"own-amqp": func(b urlbus.Broker, _ urlbus.Config) (urlbus.Bus, error) { got = b; return nil, nil },
	}}); err != nil || !slices.Equal(got.URLs, []string{"amqp://u:p%40%2F%3A%3F%23%25@h/v%40"}) {
		t.Errorf("%v, %v", got.URLs, err)
	}
}

// TestSchemes: a URL with a registered scheme has the form of the scheme after the hyphen. The opener of the scheme gets the
// brokers and the TLS configuration of the URL.
func TestSchemes(t *testing.T) {
	t.Parallel()
	var got urlbus.Broker
	var asked urlbus.Config
	cfg := urlbus.Config{Exchange: "e", Quorum: true, Schemes: map[string]urlbus.Opener{
		"own-amqp": func(b urlbus.Broker, cfg urlbus.Config) (urlbus.Bus, error) {
			got, asked = b, cfg
			return nil, nil
		},
	}}
	if _, err := urlbus.Open("own-amqp://u:p@h1,h2:1/v", cfg); err != nil || got.TLS == nil ||
		!slices.Equal(got.URLs, []string{"amqp://u:p@h1/v", "amqp://u:p@h2:1/v"}) || asked.Exchange != "e" || !asked.Quorum || asked.TLS {
		t.Errorf("%+v, %+v, %v", got.URLs, asked, err)
	}
	if _, err := urlbus.Open("own-amqp://h/?ssl=1&ssl_server_name=s", cfg); err != nil || !slices.Equal(got.URLs, []string{"amqps://h/"}) || got.TLS.ServerName != "s" || !asked.TLS {
		t.Errorf("with TLS: %v, %+v, %v", got.URLs, asked, err)
	}
	for _, url := range []string{"own-amqp://h/?hunter2=1", "own-nats://u:hunter2@h", "own-amqp://h,u:hunter2@h/"} {
		if _, err := urlbus.Open(url, cfg); fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "u:hunter2") {
			t.Errorf("%s: %v, want Invalid", url, err)
		}
	}
	if _, err := urlbus.Open("kafka://h", cfg); err == nil || !strings.Contains(err.Error(), "nats, own-amqp, rabbit") {
		t.Errorf("the error does not name the scheme of the program: %v", err)
	}
}

// TestStartAgain: while the broker cannot be reached, Start soon fails with Unavailable, and the methods of the bus return
// ErrNotStarted. When the broker is back, Start succeeds. If the broker refuses the login, Start returns Unauthenticated.
func TestStartAgain(t *testing.T) {
	t.Parallel()
	for name, brokerVar := range brokers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(envtest.URL(t, brokerVar))
			if err != nil {
				t.Fatal("the URL of the broker cannot be read")
			}
			broker := u.Host
			u.Host = envtest.DeadAddr(t)
			bus, err := urlbus.Open(u.String(), urlbus.Config{Exchange: "urlbus-again"})
			if err != nil {
				t.Fatal(err)
			}
			unstarted := func(when string) {
				t.Helper()
				if err := bus.Publish(t.Context(), "t", &rpcbus.Message{ID: "1", Kind: rpcbus.Cast}); !errors.Is(err, rpcbus.ErrNotStarted) {
					t.Errorf("%s: Publish: %v, want ErrNotStarted", when, err)
				}
				if _, err := bus.Subscribe(t.Context(), rpcbus.Subscription{Topic: "t"}); !errors.Is(err, rpcbus.ErrNotStarted) {
					t.Errorf("%s: Subscribe: %v, want ErrNotStarted", when, err)
				}
				if err := bus.CreateTopic(t.Context(), "t"); !errors.Is(err, rpcbus.ErrNotStarted) {
					t.Errorf("%s: CreateTopic: %v, want ErrNotStarted", when, err)
				}
				if err := bus.Check(t.Context()); !errors.Is(err, rpcbus.ErrNotStarted) {
					t.Errorf("%s: Check: %v, want ErrNotStarted", when, err)
				}
			}
			unstarted("new")
			for range 2 {
				begin := time.Now()
				err := bus.Start(t.Context())
				if !errors.Is(err, fault.Unavailable) || !strings.Contains(fmt.Sprint(err), u.Host) || time.Since(begin) > time.Second {
					t.Errorf("Start while the broker cannot be reached: %v after %v, want Unavailable with the address, within a short time", err, time.Since(begin))
				}
				unstarted("after a failed Start")
			}
			envtest.Forward(t, u.Host, broker)
			if err := bus.Start(t.Context()); err != nil {
				t.Fatalf("Start when the broker is back: %v", err)
			}
			if err := bus.Check(t.Context()); err != nil {
				t.Error(err)
			}
			if err := bus.Start(t.Context()); !errors.Is(err, fault.Precondition) {
				t.Errorf("started twice: %v, want Precondition", err)
			}
			if err := bus.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if err := bus.Start(t.Context()); !errors.Is(err, rpc.ErrClosed) {
				t.Errorf("Start after Stop: %v, want ErrClosed", err)
			}
			u.User = url.UserPassword("armature", "hunter2")
			if err := call(t.Context(), u.String()); !errors.Is(err, fault.Unauthenticated) || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("wrong password: %v, want Unauthenticated", err)
			}
		})
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

// TestPlainWarning: Open logs one warning with the host if the broker is on another machine and TLS is off.
func TestPlainWarning(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]int{
		"rabbit://u:hunter2@mq.example":               1,
		"rabbit://u:hunter2@127.0.0.1,192.0.2.1/":     1,
		"rabbit://u:hunter2@mq.example,mq2.example/v": 1,
		"nats://u:hunter2@192.0.2.1":                  1,
		"nats://u:hunter2@192.0.2.1?ssl=1":            0,
		"rabbit://u:hunter2@mq.example?ssl=1":         0,
		"amqps://u:hunter2@mq.example":                0,
		"rabbit://u:hunter2@127.0.0.1:5673/":          0,
		"nats://[::1]:4222":                           0,
		"nats://localhost":                            0,
		"memory://":                                   0,
	} {
		var out bytes.Buffer
		if _, err := urlbus.Open(raw, urlbus.Config{Logger: slog.New(slog.NewTextHandler(&out, nil))}); err != nil {
			t.Fatal(raw, err)
		}
		if n := strings.Count(out.String(), "level=WARN"); n != want || strings.Contains(out.String(), "hunter2") || want > 0 && !strings.Contains(out.String(), "host=") {
			t.Errorf("%s: %d warnings, want %d: %s", raw, n, want, out.String())
		}
	}
}

// TestQuestionMark: a password with an unencoded ? is refused, and no part of the password is in the error. A parameter that
// is given by both of its names is also refused.
func TestQuestionMark(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"rabbit://u:a?hunter2@h/", "nats://u:a?hunter2=x@h", "amqp://u:a?ssl=hunter2@h/"} {
		if _, err := urlbus.Open(url, urlbus.Config{}); fault.CodeOf(err) != fault.Invalid || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want Invalid without the password", url, err)
		}
	}
	for range 20 { // the order of the parameters does not matter
		if _, err := urlbus.Open("rabbit://h/?rabbit_use_ssl=0&ssl=1", urlbus.Config{}); fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), "given twice") {
			t.Fatalf("both names of a parameter: %v, want Invalid", err)
		}
	}
}

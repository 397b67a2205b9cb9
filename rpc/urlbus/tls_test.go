package urlbus_test

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/certtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/rpc"
	rpcbus "github.com/armature-go/armature/rpc/bus"
	"github.com/armature-go/armature/rpc/urlbus"
	"github.com/armature-go/armature/tlsfile"
)

// files are the paths of the certificate and key files of the TLS tests.
type files struct {
	ca, cert, key  string // files for the client
	server, secret string // certificate of the server, for localhost and queue.example, and its key
	otherCA        string
	open           string // the client's key, in a file that other users can read
}

func newFiles(t *testing.T) *files {
	t.Helper()
	ca := certtest.New(t)
	f := &files{ca: ca.File, otherCA: certtest.New(t).File}
	f.server, f.secret = ca.Issue(t, "localhost", "queue.example")
	f.cert, f.key = ca.Issue(t, "client")
	raw, err := os.ReadFile(f.key)
	if err != nil {
		t.Fatal(err)
	}
	f.open = t.TempDir() + "/open.key"
	if err := os.WriteFile(f.open, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return f
}

// secureBroker is a broker that accepts only TLS, on a port of localhost, and requires a client certificate.
type secureBroker struct {
	user   *url.Userinfo
	scheme string
	port   string
}

func secureRabbitMQ(t *testing.T, f *files) *secureBroker {
	t.Helper()
	addr := envtest.DeadAddr(t)
	s := envtest.RabbitMQ(t, "listeners.ssl.1 = "+addr,
		"ssl_options.cacertfile = "+f.ca, "ssl_options.certfile = "+f.server, "ssl_options.keyfile = "+f.secret,
		"ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true")
	_, port, _ := strings.Cut(addr, ":")
	return &secureBroker{userOf(t, s.URL), "rabbit", port}
}

func secureNATS(t *testing.T, f *files) *secureBroker {
	t.Helper()
	s := envtest.NATS(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", f.server, f.secret, f.ca))
	return &secureBroker{userOf(t, s.URL), "nats", strconv.Itoa(s.Port)}
}

func userOf(t *testing.T, raw string) *url.Userinfo {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal("the URL of the broker cannot be read")
	}
	return u.User
}

func password(u *url.Userinfo) string {
	pw, _ := u.Password()
	return pw
}

// TestTLS: if the URL or the configuration requires TLS, the bus uses TLS and verifies the server. If TLS cannot be
// used, Start fails at once, with the reason.
func TestTLS(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	for name, start := range map[string]func(*testing.T, *files) *secureBroker{"RabbitMQ": secureRabbitMQ, "NATS": secureNATS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := start(t, f)
			mine := "&ssl_cert_file=" + f.cert + "&ssl_key_file=" + f.key
			for _, tt := range []struct {
				name, host, query string
				cfg               urlbus.Config
				want              fault.Code // 0: Start succeeds
				says              string
			}{
				{name: "right authority", query: "?ssl=1&ssl_ca_file=" + f.ca + mine},
				{name: "older names", query: "?rabbit_use_ssl=True&kombu_ssl_ca_certs=" + f.ca + mine},
				{name: "by the configuration", cfg: urlbus.Config{TLS: true, TLSFiles: tlsfile.Client{CAFile: f.ca, CertFile: f.cert, KeyFile: f.key}}},
				{name: "the URL takes precedence", query: "?ssl_ca_file=" + f.ca + mine, cfg: urlbus.Config{TLS: true, TLSFiles: tlsfile.Client{CAFile: f.otherCA}}},
				{name: "unknown authority", query: "?ssl=1" + mine, want: fault.Denied, says: "x509"},
				{name: "wrong authority", query: "?ssl=1&ssl_ca_file=" + f.otherCA + mine, want: fault.Denied, says: "x509"},
				{name: "wrong name", host: "127.0.0.1", query: "?ssl=1&ssl_ca_file=" + f.ca + mine, want: fault.Denied, says: "127.0.0.1"},
				{name: "another name", host: "127.0.0.1", query: "?ssl=1&ssl_server_name=queue.example&ssl_ca_file=" + f.ca + mine},
				{name: "no certificate", query: "?ssl=1&ssl_ca_file=" + f.ca, want: fault.Denied, says: "certificate"},
			} {
				t.Run(tt.name, func(t *testing.T) {
					t.Parallel()
					host := cmp.Or(tt.host, "localhost")
					err := startURL(t, fmt.Sprintf("%s://%s@%s:%s/%s", b.scheme, b.user, host, b.port, tt.query), tt.cfg)
					// In TLS 1.3 a server checks the client's certificate after the handshake, and its refusal may be
					// lost with the connection. In this case Start returns Unavailable, and the test repeats it.
					for i := 0; i < 20 && tt.name == "no certificate" && errors.Is(err, fault.Unavailable); i++ {
						err = startURL(t, fmt.Sprintf("%s://%s@%s:%s/%s", b.scheme, b.user, host, b.port, tt.query), tt.cfg)
					}
					if fault.CodeOf(err) != tt.want || !strings.Contains(fmt.Sprint(err), tt.says) || strings.Contains(fmt.Sprint(err), password(b.user)) {
						t.Errorf("%v (%v), want %v with %q", err, fault.CodeOf(err), tt.want, tt.says)
					}
				})
			}
			t.Run("plain text", func(t *testing.T) {
				t.Parallel()
				err := startURL(t, fmt.Sprintf("%s://%s@localhost:%s/", b.scheme, b.user, b.port), urlbus.Config{})
				// NATS announces that it requires TLS. So the bus uses TLS, but does not trust the server's
				// authority.
				want, says := fault.Precondition, "amqps://"
				if b.scheme == "nats" {
					want, says = fault.Denied, "x509"
				}
				if fault.CodeOf(err) != want || !strings.Contains(fmt.Sprint(err), says) {
					t.Errorf("%v (%v), want %v with %q", err, fault.CodeOf(err), want, says)
				}
			})
		})
	}
}

// startURL starts a bus, uses the bus, and stops it.
func startURL(t *testing.T, raw string, cfg urlbus.Config) error {
	t.Helper()
	cfg.Exchange = "urlbus-tls"
	bus, err := urlbus.Open(raw, cfg)
	if err != nil {
		return err
	}
	begin := time.Now()
	err = bus.Start(t.Context())
	if took := time.Since(begin); err != nil && took > 5*time.Second {
		t.Errorf("Start took %v to fail", took)
	}
	if err == nil {
		err = bus.Check(t.Context())
	}
	if err == nil {
		if e := bus.Publish(t.Context(), "no-consumer", &rpcbus.Message{ID: "1", Kind: rpcbus.Call}); !errors.Is(e, rpc.ErrNoConsumer) {
			t.Errorf("publish: %v, want ErrNoConsumer", e)
		}
	}
	return errors.Join(err, bus.Stop(t.Context()))
}

// TestPlainServer: Start fails with Precondition if TLS is required and the broker does not offer it.
func TestPlainServer(t *testing.T) {
	t.Parallel()
	for name, variable := range brokers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := startURL(t, envtest.URL(t, variable)+"?ssl=1", urlbus.Config{})
			if fault.CodeOf(err) != fault.Precondition || !strings.Contains(fmt.Sprint(err), "TLS") {
				t.Errorf("%v (%v), want Precondition", err, fault.CodeOf(err))
			}
		})
	}
}

// TestParameters: Open refuses a parameter that is unknown or has no effect. The error names the parameter.
func TestParameters(t *testing.T) {
	t.Parallel()
	f := newFiles(t)
	for _, tt := range []struct{ url, says string }{
		{"rabbit://u:hunter2@h/?sll=1", "sll"},
		{"rabbit://u:hunter2@h/v?heartbeat=1", "heartbeat"},
		{"rabbit://u:hunter2@h?ssl=yes", "ssl"},
		{"rabbit://u:hunter2@h?ssl=1&ssl=0", "ssl"},
		{"amqps://u:hunter2@h/?ssl=0", "ssl"},
		{"nats://u:hunter2@h?tls=1", "tls"},
		{"tls://u:hunter2@h?ssl=false", "ssl"},
		{"rabbit://u:hunter2@h/?ssl_ca_file=" + f.ca, "but TLS is off: set ssl"},
		{"nats://u:hunter2@h/?ssl_server_name=x", "but TLS is off: set ssl"},
		{"rabbit://u:hunter2@h/?ssl=1&ssl_ca_file=/nonexistent", "/nonexistent"},
		{"rabbit://u:hunter2@h/?ssl=1&ssl_cert_file=" + f.cert, f.cert},
		{"rabbit://u:hunter2@h/?ssl=1&ssl_cert_file=" + f.cert + "&ssl_key_file=" + f.open, f.open},
		{"memory://?ssl=1", "memory"},
		{"rabbit://u:hunter2@h/#x", "#"},
		{"nats://h1,u:hunter2@h2", "comma"},
		{"rabbit://u:hun,ter2@h2/", "comma"},
	} {
		bus, err := urlbus.Open(tt.url, urlbus.Config{})
		if c := fault.CodeOf(err); c != fault.Invalid && c != fault.Denied || bus != nil || !strings.Contains(err.Error(), tt.says) ||
			strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "ter2") {
			t.Errorf("%s: %v, want an error with %q", tt.url, err, tt.says)
		}
	}
}

// TestOneUser: a host without a user has the user of the first host.
func TestOneUser(t *testing.T) {
	t.Parallel()
	for name, variable := range brokers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(envtest.URL(t, variable))
			if err != nil {
				t.Fatal("the URL of the broker cannot be read")
			}
			there := u.Host
			// No broker listens on the first host, so the bus must log in at the second host.
			u.Host = envtest.DeadAddr(t) + "," + there
			if err := call(t.Context(), u.Scheme+"://"+u.User.String()+"@"+u.Host+u.Path); err != nil {
				t.Error(err)
			}
		})
	}
}

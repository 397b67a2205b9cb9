package testenv

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// NATS starts a server with JetStream. The server keeps its files in dir, which must
// exist. The caller removes dir. NATS returns when JetStream answers, or with an error
// after 120 s. The server's output goes to log, and each error has the last lines of this output.
// It fails with [ErrMissing] if nats-server is not installed.
func NATS(ctx context.Context, dir string, log io.Writer) (*Service, error) {
	return NATSWith(ctx, dir, log)
}

// NATSWith starts a server as [NATS] does, with more lines of configuration. If settings has lines, NATSWith returns when the server listens, and
// does not wait for JetStream, because the settings may require TLS.
func NATSWith(ctx context.Context, dir string, log io.Writer, settings ...string) (*Service, error) {
	server, err := findNATS()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return startOnFreePort(ctx, func() (*Service, error) { return newNATS(dir, server, &tail{next: log}, settings) })
}

func newNATS(dir, server string, out *tail, settings []string) (*Service, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	password := rand.Text()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	file := filepath.Join(dir, "nats.conf")
	conf := fmt.Sprintf("listen: %q\nauthorization { user: armature, password: %q }\njetstream { store_dir: %q }\n%s\n",
		addr, password, filepath.Join(dir, "jetstream"), strings.Join(settings, "\n"))
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	s := &Service{Name: "NATS", Port: port, out: out}
	s.URL = (&url.URL{Scheme: "nats", User: url.UserPassword("armature", password), Host: addr}).String()
	s.launch = func() (*exec.Cmd, error) {
		cmd := exec.Command(server, "-c", file) //nolint:noctx // it runs until Stop
		cmd.Dir = dir
		return cmd, nil
	}
	s.probe = func(ctx context.Context) (string, error) {
		if len(settings) > 0 {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return "", err
			}
			return "", c.Close()
		}
		limit, _ := ctx.Deadline()
		c, err := nats.Connect(s.URL, nats.NoReconnect(), nats.Timeout(time.Until(limit)))
		if err != nil {
			return "", err
		}
		defer c.Close()
		// JetStream reads its files before it answers.
		_, err = c.RequestWithContext(ctx, "$JS.API.INFO", nil)
		return c.ConnectedServerVersion(), err
	}
	return s, nil
}

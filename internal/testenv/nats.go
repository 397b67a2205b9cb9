package testenv

import (
	"context"
	"crypto/rand"
	"errors"
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

// NATS starts a server with JetStream that keeps everything in dir, which must
// exist and stays the caller's. It returns when JetStream answers, or after 120
// seconds. The server's output goes to log. It fails with [ErrMissing] when
// nats-server is not installed; every error has the end of the output.
func NATS(ctx context.Context, dir string, log io.Writer) (*Service, error) {
	return NATSWith(ctx, dir, log)
}

// NATSWith is [NATS] with more lines of its configuration. With any it returns when the server
// listens, without asking for JetStream: the lines may demand TLS.
func NATSWith(ctx context.Context, dir string, log io.Writer, settings ...string) (*Service, error) {
	server, err := findNATS()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for range portTries {
		var s *Service
		if s, err = newNATS(dir, server, &tail{next: log}, settings); err != nil {
			return nil, err
		}
		if err = s.start(ctx); err == nil {
			return s, nil
		}
		if !errors.Is(err, errPort) {
			break
		}
	}
	return nil, err
}

func newNATS(dir, server string, out *tail, settings []string) (*Service, error) {
	port, err := freePort()
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
		cmd := exec.Command(server, "-c", file) //nolint:noctx // it lives until Stop
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
		// JetStream has to read what it stored before it answers.
		_, err = c.RequestWithContext(ctx, "$JS.API.INFO", nil)
		return c.ConnectedServerVersion(), err
	}
	return s, nil
}

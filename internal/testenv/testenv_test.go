package testenv_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type starter = func(context.Context, string, io.Writer) (*testenv.Service, error)

// use writes something durable (the first time) and reads it back (each time).
type use = func(t *testing.T, url string, first bool) error

var services = []struct {
	name  string
	start starter
	use   use
}{
	{"rabbitmq", testenv.RabbitMQ, useRabbitMQ},
	{"nats", testenv.NATS, useNATS},
	{"mariadb", testenv.MariaDB, useMariaDB},
	{"keystone", testenv.Keystone, useKeystone},
}

// TestLife calls all methods of each service. At the end no process has the service's directory in its
// command line, and no program listens on its port.
func TestLife(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts services: left out with -short")
	}
	for _, tt := range services {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// The path is longer than the path of a Unix socket may be.
			dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			s := start(t, tt.start, dir, &log)
			check := func(when string, first bool) {
				t.Helper()
				if err := tt.use(t, s.URL, first); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
			check("started", true)
			if s.Version == "" || s.Port == 0 {
				t.Errorf("version %q, port %d; want both", s.Version, s.Port)
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			check("restarted", false)

			s.Kill()
			if err := tt.use(t, s.URL, false); err == nil {
				t.Error("a killed service answers")
			}
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			check("restarted after a crash", false)

			if err := s.Pause(); err != nil {
				t.Fatal(err)
			}
			if c, err := dial(t, s.Port); err != nil {
				t.Errorf("a hung service refuses connections: %v", err)
			} else {
				_ = c.Close()
			}
			if err := s.Resume(); err != nil {
				t.Fatal(err)
			}
			check("resumed", false)

			if err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Stop(t.Context()); err != nil {
				t.Errorf("second Stop: %v", err)
			}
			if left := processes(t, dir); len(left) > 0 {
				t.Errorf("processes left: %q", left)
			}
			if _, err := dial(t, s.Port); err == nil {
				t.Error("the port still answers")
			}
			if log.Len() == 0 {
				t.Error("nothing was logged")
			}
		})
	}
}

// TestDiedAlone: for a daemon that ended by itself, Stop returns an error with the end of its
// log.
func TestDiedAlone(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts services: left out with -short")
	}
	s := start(t, testenv.MariaDB, t.TempDir(), io.Discard)
	d := open(t, s.URL)
	if _, err := d.ExecContext(t.Context(), "SHUTDOWN"); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	err := s.Stop(t.Context())
	if err == nil || !strings.Contains(err.Error(), "died before it was stopped") || !strings.Contains(err.Error(), "Shutdown complete") {
		t.Errorf("Stop = %v, want an error that the daemon died, with the end of the log", err)
	}
}

// TestEndsAtStart: if a daemon cannot start, the error comes at once and not after the timeout. No
// process of the daemon is left.
func TestEndsAtStart(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts services: left out with -short")
	}
	for _, tt := range services {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := start(t, tt.start, dir, io.Discard)
			if err := s.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			// Break a file that each service needs at its start.
			for _, name := range []string{"rabbitmq.conf", "nats.conf", "init.sql", "keystone.conf"} {
				if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
					if err := os.Remove(filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(dir, name), []byte("nonsense nonsense;\n"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			if tt.name == "mariadb" { // MariaDB ignores a bad init file
				if err := os.RemoveAll(filepath.Join(dir, "data")); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			err := s.Restart(ctx)
			if err == nil || !strings.Contains(err.Error(), "ended at its start") || ctx.Err() != nil {
				t.Errorf("Restart = %v (context: %v), want an error that the daemon ended", err, ctx.Err())
			}
			if left := processes(t, dir); len(left) > 0 {
				t.Errorf("processes left: %q", left)
			}
		})
	}
}

// TestProcessStop: a program that ignores SIGTERM is killed with its children.
func TestProcessStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready")
	p, err := testenv.Start(exec.CommandContext(t.Context(), "sh", "-c", `trap "" TERM; sleep 1000 & touch "$0"; wait; wait`, ready))
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(ready); err == nil {
			break
		}
	}
	p.Stop(t.Context(), 10*time.Millisecond)
	if got := p.ExitCode(); got != 128+9 {
		t.Errorf("exit code %d, want 137", got)
	}
	if p.Err() == nil {
		t.Error("Err = nil")
	}
	if _, err := testenv.Start(exec.CommandContext(t.Context(), "/nonexistent")); err == nil {
		t.Error("Start of a missing program = nil")
	}
}

func start(t *testing.T, f starter, dir string, log io.Writer) *testenv.Service {
	t.Helper()
	s, err := f(t.Context(), dir, log)
	if errors.Is(err, testenv.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop(context.WithoutCancel(t.Context())) })
	return s
}

// processes returns the command lines that contain text.
func processes(t *testing.T, text string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		line, err := os.ReadFile(f)
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(f), "cwd"))
		if err == nil && (bytes.Contains(line, []byte(text)) || cwd == text || strings.HasPrefix(cwd, text+"/")) {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func dial(t *testing.T, port int) (net.Conn, error) {
	t.Helper()
	return new(net.Dialer).DialContext(t.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

func useRabbitMQ(t *testing.T, rawURL string, first bool) error {
	t.Helper()
	c, err := amqp.Dial(rawURL)
	if err != nil {
		return err
	}
	defer c.Close()
	ch, err := c.Channel()
	if err != nil {
		return err
	}
	if first {
		_, err = ch.QueueDeclare("kept", true, false, false, false, nil)
	} else {
		_, err = ch.QueueDeclarePassive("kept", true, false, false, false, nil)
	}
	return err
}

func useNATS(t *testing.T, rawURL string, first bool) error {
	t.Helper()
	c, err := nats.Connect(rawURL, nats.NoReconnect())
	if err != nil {
		return err
	}
	defer c.Close()
	js, err := jetstream.New(c)
	if err != nil {
		return err
	}
	if first {
		if _, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "kept", Subjects: []string{"kept"}}); err != nil {
			return err
		}
		_, err = js.Publish(t.Context(), "kept", []byte("kept"))
		return err
	}
	s, err := js.Stream(t.Context(), "kept")
	if err != nil {
		return err
	}
	_, err = s.GetMsg(t.Context(), 1)
	return err
}

func useMariaDB(t *testing.T, rawURL string, first bool) error {
	t.Helper()
	d := open(t, rawURL)
	if first {
		if _, err := d.ExecContext(t.Context(), "CREATE DATABASE kept"); err != nil {
			return err
		}
	}
	_, err := d.ExecContext(t.Context(), "USE kept")
	return err
}

func open(t *testing.T, rawURL string) *sql.DB {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	cfg := mysql.NewConfig()
	cfg.User = u.User.Username()
	cfg.Passwd, _ = u.User.Password()
	cfg.Net, cfg.Addr = "tcp", u.Host
	cfg.Logger = new(mysql.NopLogger)
	c, err := mysql.NewConnector(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d := sql.OpenDB(c)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// useKeystone logs in, which needs the user in the database.
func useKeystone(t *testing.T, rawURL string, _ bool) error {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		return err
	}
	password, _ := u.User.Password()
	u.User = nil
	body := `{"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": "admin", "password": "` + password + `", "domain": {"id": "default"}}}}}}`
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.JoinPath("auth", "tokens").String(), strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("log in: %s, %w", resp.Status, err)
	}
	return nil
}

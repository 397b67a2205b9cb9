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
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

var nodes atomic.Int64 // numbers the nodes, so that their names are unique in the process

// RabbitMQ starts a broker. The broker keeps its files in dir, which must exist. The caller
// removes dir. RabbitMQ returns when the broker answers, or with an error after 120 s.
// The broker's output goes to log, and each error has the last lines of this output. RabbitMQ fails
// with [ErrMissing] if the broker is not installed.
func RabbitMQ(ctx context.Context, dir string, log io.Writer) (*Service, error) {
	return RabbitMQWith(ctx, dir, log)
}

// RabbitMQWith starts a broker as [RabbitMQ] does, with more lines of rabbitmq.conf, such as
// "max_message_size = 1048576".
func RabbitMQWith(ctx context.Context, dir string, log io.Writer, settings ...string) (*Service, error) {
	server, err := findRabbitMQ()
	if err != nil {
		return nil, err
	}
	epmd, err := findEPMD()
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return startOnFreePort(ctx, func() (*Service, error) { return newRabbitMQ(dir, server, epmd, &tail{next: log}, settings) })
}

func newRabbitMQ(dir, server, epmd string, out *tail, settings []string) (*Service, error) {
	var ports [3]int
	for i := range ports {
		var err error
		if ports[i], err = FreePort(); err != nil {
			return nil, err
		}
	}
	port, dist, epmdPort := ports[0], ports[1], ports[2]
	node := fmt.Sprintf("armature-%d-%d@localhost", os.Getpid(), nodes.Add(1))
	password := rand.Text()
	files := map[string]string{
		"rabbitmq.conf": fmt.Sprintf(`listeners.tcp.1 = 127.0.0.1:%d
default_user = armature
default_pass = %s
default_user_tags.administrator = true
disk_free_limit.absolute = 10MB
vm_memory_high_watermark.relative = 0.7
log.console = true
log.console.level = info
log.file = false
%s
`, port, password, strings.Join(settings, "\n")),
		"enabled_plugins": "[].\n",
		"env.conf":        "", // replaces the system's /etc/rabbitmq/rabbitmq-env.conf
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	env := cleanEnv(map[string]string{
		"HOME":                                dir, // for the Erlang cookie
		"LC_ALL":                              "C.UTF-8",
		"ERL_EPMD_PORT":                       strconv.Itoa(epmdPort),
		"ERL_EPMD_ADDRESS":                    "127.0.0.1",
		"ERL_CRASH_DUMP_SECONDS":              "0",
		"RABBITMQ_NODENAME":                   node,
		"RABBITMQ_DIST_PORT":                  strconv.Itoa(dist),
		"RABBITMQ_CONF_ENV_FILE":              filepath.Join(dir, "env.conf"),
		"RABBITMQ_CONFIG_FILE":                filepath.Join(dir, "rabbitmq.conf"),
		"RABBITMQ_ADVANCED_CONFIG_FILE":       filepath.Join(dir, "advanced.config"),
		"RABBITMQ_ENABLED_PLUGINS_FILE":       filepath.Join(dir, "enabled_plugins"),
		"RABBITMQ_FEATURE_FLAGS_FILE":         filepath.Join(dir, "feature_flags"),
		"RABBITMQ_MNESIA_BASE":                filepath.Join(dir, "mnesia"),
		"RABBITMQ_GENERATED_CONFIG_DIR":       filepath.Join(dir, "config"),
		"RABBITMQ_SCHEMA_DIR":                 filepath.Join(dir, "schema"),
		"RABBITMQ_LOG_BASE":                   filepath.Join(dir, "log"),
		"RABBITMQ_PID_FILE":                   filepath.Join(dir, "pid"),
		"RABBITMQ_LOGS":                       "-",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false",
		// With these variables the script's process becomes the broker. Without them the script stays the broker's
		// parent: only rabbitmqctl can stop the broker, and the broker survives if the script is killed.
		"detached":              "true",
		"RUNNING_UNDER_SYSTEMD": "true",
	})
	s := &Service{Name: "RabbitMQ", Port: port, out: out}
	s.URL = (&url.URL{
		Scheme: "amqp", User: url.UserPassword("armature", password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Path: "/",
	}).String()
	s.launch = func() (*exec.Cmd, error) {
		cmd := exec.Command(server) //nolint:noctx // it runs until Stop
		cmd.Dir, cmd.Env = dir, env
		return cmd, nil
	}
	s.probe = func(ctx context.Context) (string, error) { return probeAMQP(ctx, s.URL) }
	s.ctl = func(args []string) (*exec.Cmd, error) {
		path, err := findProgram("rabbitmq-server", "/usr/lib/rabbitmq/bin/rabbitmqctl", "rabbitmqctl")
		if err != nil {
			return nil, err
		}
		cmd := exec.Command(path, append([]string{"-q"}, args...)...) //nolint:noctx // awaited by Ctl
		cmd.Dir, cmd.Env = dir, env
		return cmd, nil
	}

	// Erlang's port mapper is a child of this process, so that it ends with this process. Otherwise
	// the broker would start a port mapper as a daemon, which never ends.
	var mapper *Process
	s.extra = func(ctx context.Context, stop bool) error {
		if stop {
			if mapper != nil {
				mapper.Stop(ctx, time.Second)
				mapper = nil
			}
			return nil
		}
		if mapper != nil {
			return nil
		}
		cmd := exec.Command(epmd, "-port", strconv.Itoa(epmdPort), "-address", "127.0.0.1") //nolint:noctx // it runs until Stop
		cmd.Dir, cmd.Env = dir, env
		cmd.Stdout, cmd.Stderr = out, out
		p, err := Start(cmd)
		if err != nil {
			return fmt.Errorf("start epmd: %w", err)
		}
		mapper = p
		if err := awaitPort(ctx, p, epmdPort); err != nil {
			p.Kill()
			mapper = nil
			return fmt.Errorf("epmd on port %d: %w%s", epmdPort, err, out)
		}
		return nil
	}
	return s, nil
}

// awaitPort waits until a program listens on the port. It returns errPort if p has ended.
func awaitPort(ctx context.Context, p *Process, port int) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.Done():
			return errPort
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
	}
}

func probeAMQP(ctx context.Context, rawURL string) (string, error) {
	c, err := amqp.DialConfig(rawURL, amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		deadline, _ := ctx.Deadline()
		return nc, nc.SetDeadline(deadline) // for the handshake; the library removes it afterwards
	}})
	if err != nil {
		return "", err
	}
	v, _ := c.Properties["version"].(string)
	return v, c.Close()
}

// cleanEnv returns this process's environment without the variables that configure Erlang,
// RabbitMQ and systemd, and with the variables in the parameter set.
func cleanEnv(set map[string]string) []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		_, replaced := set[name]
		if replaced || name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "RABBITMQ_") || strings.HasPrefix(name, "ERL_") {
			continue
		}
		env = append(env, kv)
	}
	for name, v := range set {
		env = append(env, name+"="+v)
	}
	return env
}

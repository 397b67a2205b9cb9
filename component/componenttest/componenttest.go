// Package componenttest runs a whole component in a test, without other software: each service as a process of its own, on a bus in memory
// and an SQLite file.
//
//	func TestGreeting(t *testing.T) {
//		c := componenttest.Start(t, hello())
//		id := create(t, c.URL)              // a request to the API
//		c.Service("greeter").Kill()         // as SIGKILL does
//		c.Service("greeter").Start()
//		if op := c.Wait(id); op.State != operation.Succeeded {
//			t.Error(op.Error)
//		}
//	}
//
// The processes share the program of the test, so they also share the variables of the component's packages. With the options transport_url
// and database.connection the same test runs on a broker and a database server.
package componenttest

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/component/internal/inject"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/service/operation"
)

// Timeout is the longest time that a call of this package waits.
const Timeout = 30 * time.Second

// settings are the options of a test: a process that was killed is down after a second, and its operations continue after a second.
var settings = []string{"report_interval=0.1", "service_down_time=1", "graceful_shutdown_timeout=10"}

const lease = time.Second

// Cluster is the processes of a component. Its methods are for the test's goroutine.
type Cluster[O any] struct {
	// URL is the start of the URLs of the API, such as http://127.0.0.1:40123. It stays the same when the process with the API is
	// killed and started again. If several processes have the API, one of them gets all requests until it ends. URL is empty
	// without an API.
	URL string
	// DB is a handle of the test on the database. It is nil for a component without one.
	DB *sqlx.DB

	t        testing.TB
	c        component.Component[O]
	options  []string
	hub      *membus.Bus
	api      *proxy
	services []*Service[O]
}

// Start starts one process for each service, on the host "host-1", and returns when all have started. The parameter options has texts of the form NAME=VALUE or
// SECTION.NAME=VALUE; they override the defaults of a test: heartbeats each 0.1 s, a process that was killed is down after 1 s, its
// operations continue after 1 s, the API listens on a free port and serves every client. A wrong option, or a service that does not start
// within [Timeout], ends the test. The processes are stopped when the test ends. A process that ends with an error, or does not end,
// fails the test.
func Start[O any](t testing.TB, c component.Component[O], options ...string) *Cluster[O] {
	t.Helper()
	cl := &Cluster[O]{t: t, c: c, hub: membus.New()}
	t.Cleanup(func() { _ = cl.hub.Close() })
	dir := t.TempDir()
	url := "sqlite://" + filepath.Join(dir, "test.db")
	cl.options = append([]string{"state_path=" + dir, "database.connection=" + url}, settings...)
	if embedsType(reflect.TypeFor[O](), reflect.TypeFor[component.AccessOptions]()) {
		cl.options = append(cl.options, "api.auth_strategy=noauth2")
	}
	if embedsType(reflect.TypeFor[O](), reflect.TypeFor[component.APIOptions]()) { // a component with another option for the address sets it itself
		cl.options = append(cl.options, "listen=127.0.0.1:0")
	}
	cl.options = append(cl.options, options...)
	cl.c.Runner = func(o *O) (cfg operation.RunnerConfig) {
		if c.Runner != nil {
			cfg = c.Runner(o)
		}
		cfg.Lease = cmp.Or(cfg.Lease, lease)
		return cfg
	}
	if c.Migrations != nil {
		for _, o := range options {
			if v, ok := strings.CutPrefix(o, "database.connection="); ok {
				url = v
			}
		}
		cl.Command("db", "sync")
		d, err := db.Open(t.Context(), db.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		cl.DB = d
	}
	for _, s := range c.Services {
		cl.services = append(cl.services, &Service[O]{cl: cl, service: s.Name, host: "host-1"})
	}
	t.Cleanup(cl.stop)
	for _, p := range cl.services { // all at once, because some wait for others
		p.launch()
	}
	for _, p := range cl.services {
		p.waitStarted()
	}
	return cl
}

// embedsType reports whether the struct type t is the type other, or embeds it.
func embedsType(t, other reflect.Type) bool {
	if t == other {
		return true
	}
	for f := range t.Fields() {
		if f.Anonymous && f.Type.Kind() == reflect.Struct && embedsType(f.Type, other) {
			return true
		}
	}
	return false
}

// stop stops the processes that run, including those that have not started yet, and waits for the killed processes.
func (cl *Cluster[O]) stop() {
	for _, s := range slices.Backward(cl.services) {
		switch {
		case s.process != nil:
			s.Stop()
		case s.running(): // it has not started, and has failed the test already
			s.cancel()
			select {
			case <-s.ended:
			case <-time.After(Timeout):
				cl.t.Errorf("%s on %s has not ended within %s:\n%s", s.service, s.host, Timeout, s.log)
			}
			s.cancel = nil
		}
		s.killed.Wait()
	}
}

// Service returns the service of the given name, whose process [Start] has started. It ends the test if the component has no such
// service.
func (cl *Cluster[O]) Service(service string) *Service[O] {
	cl.t.Helper()
	i := slices.IndexFunc(cl.services, func(p *Service[O]) bool { return p.service == service })
	if i < 0 {
		cl.t.Fatalf("the component has no service %q", service)
	}
	return cl.services[i]
}

// Add starts another process of a service on a host. It ends the test as [Start] does.
func (cl *Cluster[O]) Add(service, host string) *Service[O] {
	cl.t.Helper()
	p := &Service[O]{cl: cl, service: service, host: host}
	cl.services = append(cl.services, p)
	p.Start()
	return p
}

// Command runs a command of the program, such as "member", "list", with the options of the test, and returns what it prints. It ends the test
// if the exit code is not 0.
func (cl *Cluster[O]) Command(args ...string) string {
	cl.t.Helper()
	var out, errs bytes.Buffer
	if code := component.Run(cl.t.Context(), cl.c, args, cl.environment("host-1"), &out, &errs); code != 0 {
		cl.t.Fatalf("%s ended with %d: %s", strings.Join(args, " "), code, &errs)
	}
	return out.String()
}

// Wait waits until the last operation on a resource has ended, and returns it. It ends the test after [Timeout].
func (cl *Cluster[O]) Wait(resource string) operation.Operation {
	cl.t.Helper()
	store := operation.NewStore(cl.DB)
	for end := time.Now().Add(Timeout); ; {
		list, err := store.List(cl.t.Context(), operation.Filter{Resource: resource, Limit: 1})
		switch {
		case err != nil:
			cl.t.Fatal(err)
		case len(list) > 0 && list[0].State.Ended():
			return list[0]
		case time.Now().After(end) && len(list) == 0:
			cl.t.Fatalf("no operation on %s was begun within %s", resource, Timeout)
		case time.Now().After(end):
			cl.t.Fatalf("the operation on %s has not ended within %s: %s, step %s, %d attempts, last error: %s", resource, Timeout, list[0].State, list[0].StepName, list[0].Attempts, list[0].Error)
		}
		cl.pause()
	}
}

// pause waits a little.
func (cl *Cluster[O]) pause() {
	select {
	case <-time.After(10 * time.Millisecond):
	case <-cl.t.Context().Done():
	}
}

// environment returns the options of a process as variables.
func (cl *Cluster[O]) environment(host string) (env []string) {
	for _, o := range slices.Concat([]string{"host=" + host}, cl.options) {
		name, value, ok := strings.Cut(o, "=")
		section, option, qualified := strings.Cut(name, ".")
		if !qualified {
			section, option = "DEFAULT", name
		}
		if !ok || option == "" {
			cl.t.Fatalf("option %q: want NAME=VALUE or SECTION.NAME=VALUE", o)
		}
		variable := strings.ToUpper("OS_"+section+"__"+option) + "="
		env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, variable) })
		env = append(env, variable+value)
	}
	return env
}

// Service is a service of the component in a process of its own. Its methods are for the test's goroutine.
type Service[O any] struct {
	cl            *Cluster[O]
	service, host string
	killed        sync.WaitGroup // processes that were killed and whose goroutines still run

	process *component.Process[O] // nil: it does not run
	started chan *component.Process[O]
	ended   chan int
	cancel  context.CancelFunc
	log     *logBuffer
}

func (s *Service[O]) running() bool { return s.cancel != nil }

// Process returns the process as the component itself uses it, with its options, RPC client and database. It ends the test if the
// process does not run.
func (s *Service[O]) Process() *component.Process[O] {
	s.cl.t.Helper()
	if s.process == nil {
		s.cl.t.Fatalf("%s on %s does not run: call Start", s.service, s.host)
	}
	return s.process
}

// Start starts the process again, and returns when it has started. It ends the test if the process runs, or does not start within [Timeout].
func (s *Service[O]) Start() {
	s.cl.t.Helper()
	s.launch()
	s.waitStarted()
}

// launch starts the process and does not wait.
func (s *Service[O]) launch() {
	s.cl.t.Helper()
	if s.running() {
		s.cl.t.Fatalf("%s on %s runs already", s.service, s.host)
	}
	ctx, cancel := context.WithCancel(inject.With(context.WithoutCancel(s.cl.t.Context()), inject.Parts{Bus: newEndpoint(s.cl.hub)}))
	started, ended, log := make(chan *component.Process[O], 1), make(chan int, 1), new(logBuffer)
	s.started, s.ended, s.cancel, s.log = started, ended, cancel, log
	c := s.cl.c
	next := c.Started
	c.Started = func(own *component.Process[O]) error {
		if next != nil {
			if err := next(own); err != nil {
				return err
			}
		}
		started <- own
		return nil
	}
	env := s.cl.environment(s.host)
	go func() { ended <- component.Run(ctx, c, []string{s.service}, env, io.Discard, log) }()
}

func (s *Service[O]) waitStarted() {
	s.cl.t.Helper()
	select {
	case s.process = <-s.started:
	case code := <-s.ended:
		s.cancel()
		s.cancel = nil
		s.cl.t.Fatalf("%s on %s ended with %d and has not started:\n%s", s.service, s.host, code, s.log)
	case <-time.After(Timeout):
		s.cl.t.Fatalf("%s on %s has not started within %s:\n%s", s.service, s.host, Timeout, s.log)
	}
	if addr := s.process.Addr(); addr != "" {
		s.cl.serve(addr)
	}
}

// serve makes the cluster's URL lead to the API of a process.
func (cl *Cluster[O]) serve(addr string) {
	cl.t.Helper()
	if cl.api == nil {
		cl.api = newProxy(cl.t)
		scheme := "http"
		if slices.ContainsFunc(cl.options, func(o string) bool { return strings.HasPrefix(o, "wsgi.ssl_cert_file=") }) {
			scheme = "https"
		}
		cl.URL = fmt.Sprintf("%s://%s", scheme, cl.api.listener.Addr())
	}
	if cl.api.target() == "" { // otherwise another process has the API, and still gets the requests
		cl.api.connect(addr)
	}
}

// unserve cuts the connections to the API of a process that ends. Later connections go to another process that has the API, if
// one runs.
func (cl *Cluster[O]) unserve(addr string) {
	if addr == "" || cl.api == nil || cl.api.target() != addr {
		return
	}
	next := ""
	for _, s := range cl.services {
		if s.process != nil && s.process.Addr() != "" {
			next = s.process.Addr()
		}
	}
	cl.api.connect(next)
}

// Stop ends the process as SIGTERM does, and returns when it has ended. An exit code other than 0 fails the test.
func (s *Service[O]) Stop() {
	s.cl.t.Helper()
	own := s.markEnded()
	s.cancel()
	select {
	case code := <-s.ended:
		if code != 0 {
			s.cl.t.Errorf("%s on %s ended with %d:\n%s", s.service, s.host, code, s.log)
		}
	case <-time.After(Timeout):
		s.cl.t.Errorf("%s on %s has not ended within %s:\n%s", s.service, s.host, Timeout, s.log)
	}
	s.cl.unserve(own.Addr())
	s.cancel = nil
}

// Kill ends the process as SIGKILL does: its connections to the bus, to the database and to clients of the API are cut at once. The requests
// and messages that the process was handling get no answer and no acknowledgement. The member stays up until the option service_down_time
// has passed. Code of the component that uses none of these connections, such as a driver's, runs until it notices that its context
// has ended.
func (s *Service[O]) Kill() {
	s.cl.t.Helper()
	own := s.markEnded()
	s.cl.unserve(own.Addr())
	_ = own.Bus.Close()
	if own.DB != nil {
		_ = own.DB.Close()
		for end := time.Now().Add(time.Second); own.DB.Stats().InUse > 0 && time.Now().Before(end); { // a running transaction ends within about a second
			s.cl.pause()
		}
	}
	s.cancel()
	ended := s.ended
	s.killed.Go(func() { <-ended })
	s.cancel = nil
}

// markEnded marks the process as ended, and ends the test if it does not run.
func (s *Service[O]) markEnded() *component.Process[O] {
	s.cl.t.Helper()
	own := s.Process()
	s.process = nil
	return own
}

// logBuffer is the log of a process.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Log returns what the process has logged since it was started last.
func (s *Service[O]) Log() string { return s.log.String() }

package driver_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/reqctx"
)

// echoer is a kind of driver for these tests.
type echoer interface {
	driver.Driver
	// Echo returns its argument, or executes the argument if that is a command.
	Echo(ctx context.Context, s string) (string, error)
	// Count calls f with 0 to n-1. Afterwards it returns errNoRoom if n is 7, and waits for the end of ctx if n is 100.
	Count(ctx context.Context, n int, f func(int) error) error
}

var echoKind = driver.Kind[echoer]{
	Name: "echo", Protocol: 3,
	Register: func(s grpc.ServiceRegistrar, d echoer) { s.RegisterService(&echoDesc, d) },
	Client: func(c grpc.ClientConnInterface, protocol int) echoer {
		return &echoClient{driver.Remote(c), c, protocol}
	},
}

// echoKindWithProtocol returns echoKind with another version of its protocol.
func echoKindWithProtocol(n int) driver.Kind[echoer] {
	k := echoKind
	k.Protocol = n
	return k
}

var echoDesc = grpc.ServiceDesc{
	ServiceName: "test.Echo",
	HandlerType: (*echoer)(nil),
	Methods: []grpc.MethodDesc{{
		MethodName: "Echo",
		Handler: func(srv any, ctx context.Context, dec func(any) error, ic grpc.UnaryServerInterceptor) (any, error) {
			in := new(wrapperspb.StringValue)
			if err := dec(in); err != nil {
				return nil, err
			}
			call := func(ctx context.Context, req any) (any, error) {
				out, err := srv.(echoer).Echo(ctx, req.(*wrapperspb.StringValue).GetValue())
				return wrapperspb.String(out), err
			}
			if ic == nil {
				return call(ctx, in)
			}
			return ic(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/test.Echo/Echo"}, call)
		},
	}},
	Streams: []grpc.StreamDesc{{
		StreamName: "Count", ServerStreams: true,
		Handler: func(srv any, ss grpc.ServerStream) error {
			in := new(wrapperspb.Int64Value)
			if err := ss.RecvMsg(in); err != nil {
				return err
			}
			return srv.(echoer).Count(ss.Context(), int(in.GetValue()), func(i int) error { return ss.SendMsg(wrapperspb.Int64(int64(i))) })
		},
	}},
}

type echoClient struct {
	driver.Driver
	c        grpc.ClientConnInterface
	protocol int
}

func (c *echoClient) Echo(ctx context.Context, s string) (string, error) {
	out := new(wrapperspb.StringValue)
	err := c.c.Invoke(ctx, "/test.Echo/Echo", wrapperspb.String(s), out)
	return out.GetValue(), err
}

func (c *echoClient) Count(ctx context.Context, n int, f func(int) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ss, err := c.c.NewStream(ctx, &echoDesc.Streams[0], "/test.Echo/Count")
	if err != nil {
		return err
	}
	if err := errors.Join(ss.SendMsg(wrapperspb.Int64(int64(n))), ss.CloseSend()); err != nil {
		return err
	}
	for {
		v := new(wrapperspb.Int64Value)
		if err := ss.RecvMsg(v); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := f(int(v.GetValue())); err != nil {
			return err
		}
	}
}

// echo implements echoer in the driver's process.
type echo struct {
	dir  string
	o    echoOptions
	lock *os.File // or nil
}

var errNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "no room")

type echoOptions struct {
	Dir   string `json:"dir"`
	Color string `json:"color"`
	Crash string `json:"crash"` // a path: Open crashes while this file exists
	Fail  string `json:"fail"`  // a path: Open fails while this file exists
	Hang  bool   `json:"hang"`  // Open never returns
	Gate  string `json:"gate"`  // a path: Open writes its process id to GATE.pid and waits for this file
	// Concurrent and Lacks change the driver's Info. With Concurrent the driver declares that it is Concurrent. With
	// Lacks the driver declares no capability.
	Concurrent bool   `json:"concurrent"`
	Lacks      bool   `json:"lacks"`
	Lock       string `json:"lock"` // a path: Open locks this file, and Close unlocks it
	Serial     int    `json:"serial"`
}

func openEcho(ctx context.Context, raw json.RawMessage) (echoer, error) {
	var o echoOptions
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &o); err != nil {
			return nil, fault.New(fault.Invalid, "options: %w", err)
		}
	}
	if o.Color != "" && o.Color != "blue" {
		return nil, fault.New(fault.Invalid, "option color: %q is not blue", o.Color)
	}
	if _, err := os.Stat(o.Crash); err == nil {
		panicInGoroutine("Open wants to crash")
	}
	if _, err := os.Stat(o.Fail); err == nil {
		return nil, errors.New("the array cannot be reached")
	}
	if o.Hang {
		<-ctx.Done()
		select {} // a driver that ignores the end of its context
	}
	lock, err := o.pass()
	if err != nil {
		return nil, err
	}
	return &echo{o.Dir, o, lock}, nil
}

// pass waits for the gate and takes the lock.
func (o *echoOptions) pass() (lock *os.File, err error) {
	if o.Gate != "" {
		if err := errors.Join(os.WriteFile(o.Gate+".new", []byte(strconv.Itoa(os.Getpid())), 0o600), os.Rename(o.Gate+".new", o.Gate+".pid")); err != nil {
			return nil, err
		}
		if err := waittest.Poll(time.Hour, func() error { _, err := os.Stat(o.Gate); return err }); err != nil {
			return nil, err
		}
	}
	if o.Lock == "" {
		return nil, nil //nolint:nilnil // the driver has no lock
	}
	lock, err = os.OpenFile(o.Lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	return lock, err
}

// panicInGoroutine crashes the process: the recover of the gRPC handler does not catch a panic of another goroutine.
func panicInGoroutine(msg string) {
	go panic(msg)
	select {} // a return could send a reply before the process is dead
}

func (e *echo) Info(context.Context) (driver.Info, error) {
	info := driver.Info{Name: "echo", Version: "1.2", Capabilities: []driver.Capability{"count"}, Concurrent: e.o.Concurrent}
	if e.o.Lacks {
		info.Capabilities = nil
	}
	return info, nil
}

func (e *echo) Close() error {
	if e.lock != nil {
		if err := e.lock.Close(); err != nil {
			return err
		}
	}
	if e.dir != "" {
		return os.WriteFile(filepath.Join(e.dir, "closed"), nil, 0o600)
	}
	return nil
}

// brokenError is an error type for a common mistake: a nil *brokenError is not a nil error, and its Error panics.
type brokenError struct{ text string }

func (e *brokenError) Error() string { return e.text }

func (e *echo) Echo(ctx context.Context, s string) (string, error) {
	what, arg, _ := strings.Cut(s, ":")
	switch what {
	case "exit":
		code, _ := strconv.Atoi(arg)
		os.Exit(code)
	case "crash":
		panicInGoroutine("crash")
	case "panic":
		panic("panic " + arg)
	case "broken error":
		return "", (*brokenError)(nil)
	case "sleep":
		d, _ := time.ParseDuration(arg)
		_ = os.WriteFile(filepath.Join(e.dir, "asleep"), nil, 0o600)
		select {
		case <-time.After(d):
		case <-ctx.Done():
			_ = os.WriteFile(filepath.Join(e.dir, "canceled"), nil, 0o600)
			return "", ctx.Err()
		}
	case "plain":
		return "", errors.New(arg)
	case "room":
		return "", fault.New(fault.Precondition, "host h1: %w", &fault.Error{Code: fault.Exhausted, Reason: "NoRoom", Msg: arg, Meta: map[string]string{"need": "3"}})
	case "unavailable":
		return "", fault.New(fault.Unavailable, "not yet")
	case "who":
		r := reqctx.From(ctx)
		return fmt.Sprintf("%s %s %v", r.ID, r.ProjectID, r.Roles), nil
	case "metadata":
		return strings.Join(metadata.ValueFromIncomingContext(ctx, "armature-request-bin"), "\n"), nil
	case "deadline":
		d, ok := ctx.Deadline()
		return strconv.FormatBool(ok && time.Until(d) > 0 && time.Until(d) < time.Minute), nil
	case "env":
		return strings.Join(os.Environ(), "\n"), nil
	case "append": // appends the argument and the process id to a file
		f, err := os.OpenFile(filepath.Join(e.dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return "", err
		}
		_, err = fmt.Fprintf(f, "%s %d\n", arg, os.Getpid())
		return strconv.Itoa(os.Getpid()), errors.Join(err, f.Close())
	case "pid":
		return strconv.Itoa(os.Getpid()), nil
	case "uid":
		return strconv.Itoa(os.Getuid()), nil
	case "limit":
		return limits(), nil
	case "log":
		slog.WarnContext(ctx, "the fan is slow", "rpm", 300)
		fmt.Fprintln(os.Stderr, "plain words")
		fmt.Println("printed")
		return "", nil
	case "flood":
		n, _ := strconv.Atoi(arg)
		for i := range n {
			fmt.Fprintf(os.Stderr, "{\"level\":\"INFO\",\"msg\":\"line %d\"}\n", i)
		}
		return "", nil
	case "write":
		text, err := strconv.Unquote(arg)
		if err == nil {
			_, err = os.Stderr.WriteString(text)
		}
		return "", err
	case "stopped":
		return "", stopSelf()
	}
	return s, nil
}

func (e *echo) Count(ctx context.Context, n int, f func(int) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	if n == 7 {
		return errNoRoom
	}
	if n == 100 {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// TestMain is also the main function of the driver programs, which are symbolic links to this test binary. The name of the link
// selects the driver.
func TestMain(m *testing.M) {
	if programs := os.Getenv("TEST_WORKER"); programs != "" && os.Getenv("ARMATURE_DRIVER") == "" {
		runWorker(programs, os.Getenv("TEST_SOCKETS"))
	}
	if os.Getenv("ARMATURE_DRIVER") == "" {
		goleak.VerifyTestMain(m)
		return
	}
	switch name := filepath.Base(os.Args[0]); name {
	case "armature-echo-old":
		driver.Serve(echoKindWithProtocol(2), openEcho)
	case "armature-echo-new":
		driver.Serve(echoKindWithProtocol(4), openEcho)
	case "armature-echo-garbage":
		talkGarbage()
	case "armature-echo-bare":
		serveBare()
	case "armature-echo-other":
		k := echoKindWithProtocol(3)
		k.Name = "volume"
		driver.Serve(k, openEcho)
	case "armature-speaker-loud":
		driver.Serve(speakerKind, openSpeaker)
	default:
		driver.Serve(echoKind, openEcho)
	}
}

// talkGarbage is a program that begins as a driver does, and then sends noise to
// each client.
func talkGarbage() {
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", filepath.Join(os.Getenv("PLUGIN_UNIX_SOCKET_DIR"), "s"))
	if err != nil {
		panic(err)
	}
	block, _ := pem.Decode([]byte(os.Getenv("PLUGIN_CLIENT_CERT"))) // some certificate
	fmt.Printf("1|3|unix|%s|grpc|%s\n", l.Addr(), base64.RawStdEncoding.EncodeToString(block.Bytes))
	noise := bytes.Repeat([]byte{0xff}, 1<<20) // no random bytes: crypto/tls reads some first bytes as other faults
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write(noise)
	}
}

// installPrograms creates programs in a temporary directory and returns the directory. NAME is a link armature-echo-NAME to
// this test binary; NAME=SCRIPT is a shell script armature-echo-NAME.
func installPrograms(t testing.TB, programs ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		name, script, ok := strings.Cut(p, "=")
		path := filepath.Join(dir, "armature-echo-"+name)
		if ok {
			err = writeProgram(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755)
		} else {
			err = os.Symlink(self, path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// raceEnv is the environment of driver programs. Without raceEnv, a program that is built with the race detector waits for a second when it ends.
var raceEnv = []string{"GORACE=atexit_sleep_ms=0"}

// launchPlugin starts cfg.Program, by default "good", and closes it at the end of the test.
func launchPlugin(t testing.TB, cfg driver.PluginConfig) *driver.Plugin[echoer] {
	t.Helper()
	if cfg.Program == "" {
		cfg.Program, cfg.Dir = "good", installPrograms(t, "good")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Env == nil {
		cfg.Env = raceEnv
	}
	p, err := driver.Launch(t.Context(), echoKind, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.Status().State == driver.Closed { // the test has closed the plugin
			return
		}
		if err := p.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return p
}

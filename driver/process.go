package driver

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/armature-go/armature/driver/driverpb"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/tempdir"
)

// drain is how long what a dead program wrote is waited for: a process that it
// started may hold its output open for ever.
const drain = 200 * time.Millisecond

// process is one run of a driver's program. It is the runner that go-plugin is
// given instead of its own, which ends neither programs that hang nor those whose
// children hold their output, and panics at some lines of log.
type process struct {
	cfg       *PluginConfig
	path      string
	program   *os.File // at path, which was judged; open until it runs
	protocols []int

	cmd    *exec.Cmd
	proc   atomic.Pointer[os.Process] // nil until it runs
	life   *os.File                   // our end of its standard input
	stdout *io.PipeReader             // the line of the handshake, if it is one
	log    *programLog
	client *goplugin.Client
	dir    *tempdir.Dir // where its socket is; nil before it is made

	conn     *grpc.ClientConn
	protocol int

	exited  chan struct{} // closed when the program has ended
	status  error         // how, once exited is closed
	drained chan struct{} // closed when all that it wrote is logged

	mu    sync.Mutex
	wrong error // why it was ended, or what was wrong with its handshake
}

// errRefused marks the error of a program that was not started: its file is missing, is not the pinned one, or could
// be changed by another user.
var errRefused = errors.New("it was not started")

// start runs the program and opens its driver, within ctx. On an error nothing of
// it is left.
func start(ctx context.Context, kind string, protocols []int, path string, cfg *PluginConfig, log *slog.Logger) (*process, error) {
	program, err := openProgram(path, cfg.SHA256)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	defer func() { _ = program.Close() }() // it was only read
	p := &process{
		cfg: cfg, path: path, program: program, protocols: protocols, log: &programLog{log: log, ctx: context.WithoutCancel(ctx)},
		exited: make(chan struct{}), drained: make(chan struct{}),
	}
	late := func() error {
		ended := ctx.Err()
		if ended == nil {
			ended = context.DeadlineExceeded // which gRPC has seen first
		}
		return fault.New(fault.CodeOf(ended), "it did not start in time: %w", ended)
	}
	stop := context.AfterFunc(ctx, func() { p.fail(late()) })
	err = p.connect(ctx, kind)
	if !stop() || errors.Is(err, context.DeadlineExceeded) {
		err = late()
	}
	if err != nil {
		p.fail(err)
		p.cleanUp()
		return nil, p.why(err)
	}
	return p, nil
}

func (p *process) connect(ctx context.Context, kind string) error {
	var err error
	if p.dir, err = tempdir.Make(p.cfg.SocketDir, socketPrefix); err != nil {
		return fmt.Errorf("socket_dir: %w", err)
	}
	// A socket's name is p.dir.Path/plugin-dir0123456789/plugin0123456789.
	if n := len(p.dir.Path) + 2*20; n > maxSocket {
		return fault.New(fault.Invalid, "socket_dir: %s is too long for the names of sockets: by %d bytes", p.dir.Path, n-maxSocket)
	}
	conf, cert, err := ownTLS()
	if err != nil {
		return err
	}
	sets := make(map[int]goplugin.PluginSet)
	for _, v := range p.protocols {
		sets[v] = goplugin.PluginSet{pluginName: &grpcPlugin{}}
	}
	log := &lineWriter{p.log}
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  handshake,
		VersionedPlugins: sets,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		TLSConfig:        conf, // go-plugin's AutoMTLS, but with a key that other libraries than Go's take, too
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			return p, p.prepare(ctx, cmd.Env, dir, cert)
		},
		SkipHostEnv:      true,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: p.dir.Path},
		StartTimeout:     2 * p.cfg.StartTimeout, // ours is over before
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       log,
		SyncStderr:       log,
	})
	rpc, err := p.client.Client()
	if err != nil {
		return err
	}
	raw, err := rpc.Dispense(pluginName)
	if err != nil {
		return err
	}
	p.protocol = p.client.NegotiatedVersion()
	p.conn = raw.(*grpc.ClientConn)
	return p.open(ctx, kind)
}

// open calls the driver's Open.
func (p *process) open(ctx context.Context, kind string) error {
	var out outcome
	resp := new(driverpb.OpenResponse)
	err := p.conn.Invoke(ctx, driverpb.Driver_Open_FullMethodName, &driverpb.OpenRequest{Options: p.cfg.Options}, resp, out.options(nil)...)
	if err != nil {
		return out.err(ctx, filepath.Base(p.path), driverpb.Driver_Open_FullMethodName, err)
	}
	if resp.GetKind() != kind {
		return fault.New(fault.Invalid, "it is a driver of the kind %s, not %s", quote(resp.GetKind()), kind)
	}
	return nil
}

// socketPrefix begins the names of the folders of sockets.
const socketPrefix = "driver-"

// sweepSockets removes the folders of services that were killed.
func sweepSockets(ctx context.Context, cfg *PluginConfig, log *slog.Logger) {
	var owners []int // beside the user of this process
	if u, err := user.Lookup(cfg.User); cfg.User != "" && err == nil {
		if uid, err := strconv.Atoi(u.Uid); err == nil {
			owners = append(owners, uid)
		}
	}
	removed, err := tempdir.Sweep(cfg.SocketDir, socketPrefix, owners...)
	if len(removed) > 0 {
		log.InfoContext(ctx, "removed socket folders of services that were killed", "folders", removed)
	}
	if err != nil {
		log.WarnContext(ctx, "socket folders of services that were killed are left", "error", err)
	}
}

// maxSocket is the length of the longest name of a Unix socket.
const maxSocket = 107

// prepare makes the command, which [process.Start] starts.
func (p *process) prepare(ctx context.Context, env []string, dir, cert string) error {
	p.cmd = exec.Command(p.path, p.cfg.Args...) //nolint:noctx // ended by fail
	if p.cfg.SHA256 != "" {
		p.executeOpen()
	}
	p.cmd.Dir = "/"
	for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			p.cmd.Env = append(p.cmd.Env, name+"="+v)
		}
	}
	p.cmd.Env = append(p.cmd.Env, logLevelKey+"="+logLevel(ctx, p.log.log).String())
	p.cmd.Env = slices.Concat(p.cmd.Env, p.cfg.Env, env, []string{"PLUGIN_CLIENT_CERT=" + cert})
	return p.secure(p.dir.Path, dir)
}

// logLevel is the least level that a logger takes.
func logLevel(ctx context.Context, log *slog.Logger) slog.Level {
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn} {
		if log.Enabled(ctx, l) {
			return l
		}
	}
	return slog.LevelError
}

// Start implements go-plugin's Runner: it starts the program.
func (p *process) Start(context.Context) error {
	stdin, life, err := os.Pipe()
	if err != nil {
		return err
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdin.Close(), life.Close())
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdin.Close(), life.Close(), outR.Close(), outW.Close())
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr, p.life = stdin, outW, errW, life
	started := make(chan error)
	go p.run(started)
	err = <-started
	_ = errors.Join(stdin.Close(), outW.Close(), errW.Close())
	if err != nil {
		close(p.drained)
		return errors.Join(err, life.Close(), outR.Close(), errR.Close())
	}
	var line *io.PipeWriter
	p.stdout, line = io.Pipe()
	var readers sync.WaitGroup
	readers.Go(func() { p.readStdout(outR, line) })
	readers.Go(func() { _, _ = io.Copy(p.log, errR) })
	go func() {
		<-p.exited
		end := time.Now().Add(drain)
		_ = errors.Join(outR.SetReadDeadline(end), errR.SetReadDeadline(end))
		readers.Wait()
		p.log.close()
		_ = errors.Join(outR.Close(), errR.Close(), life.Close())
		close(p.drained)
	}()
	return nil
}

// readStdout hands the line of the handshake to go-plugin, if it is one that this
// worker takes, and the rest to the log.
func (p *process) readStdout(out io.Reader, line *io.PipeWriter) {
	r := bufio.NewReaderSize(out, maxLine)
	first, err := r.ReadSlice('\n')
	if err == nil {
		err = p.checkHandshake(strings.TrimSpace(string(first)))
	} else if len(first) > 0 {
		err = fault.New(fault.Invalid, "it is not a driver: its output begins with %s", quote(string(first)))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		p.fail(err)
	}
	if err == nil {
		_, _ = line.Write(bytes.Clone(first))
	}
	_ = line.Close()
	_, _ = io.Copy(p.log, r)
}

// checkHandshake finds what go-plugin says less about, or would not refuse.
func (p *process) checkHandshake(line string) error {
	parts := strings.Split(line, "|")
	if len(parts) < 6 || parts[0] != strconv.Itoa(goplugin.CoreProtocolVersion) || parts[4] != string(goplugin.ProtocolGRPC) {
		return fault.New(fault.Invalid, "it is not a driver: its output begins with %s, where \"1|PROTOCOL|unix|SOCKET|grpc|CERTIFICATE\" is expected", quote(line))
	}
	if v, err := strconv.Atoi(parts[1]); err != nil || !slices.Contains(p.protocols, v) {
		ours := make([]string, len(p.protocols))
		for i, v := range p.protocols {
			ours[i] = strconv.Itoa(v)
		}
		return fault.New(fault.Invalid, "it speaks protocol %s, and this worker %s", parts[1], strings.Join(ours, " and "))
	}
	switch host, _, _ := net.SplitHostPort(parts[3]); {
	case parts[2] == "unix":
	case parts[2] == "tcp" && net.ParseIP(host).IsLoopback():
	default:
		return fault.New(fault.Invalid, "it listens on %s %s, which is neither a Unix socket nor on the loopback interface", parts[2], quote(parts[3]))
	}
	if len(parts[5]) <= 50 { // as go-plugin tells a certificate
		return fault.New(fault.Invalid, "it offers no certificate: a driver speaks TLS")
	}
	return nil
}

// lineWriter is what a program's replaced standard output goes to, which comes
// over the connection.
type lineWriter struct{ log *programLog }

func (w *lineWriter) Write(b []byte) (int, error) { return w.log.Write(b) }

// Wait implements go-plugin's Runner.
func (p *process) Wait(context.Context) error { <-p.exited; return p.status }

// Kill implements go-plugin's Runner.
func (p *process) Kill(context.Context) error { p.kill(); return nil }

// kill ends the program, if it runs: os.Process knows whether its number is still
// its own.
func (p *process) kill() {
	if proc := p.proc.Load(); proc != nil {
		_ = proc.Kill() // its only error: it has ended
	}
}

// Stdout implements go-plugin's Runner.
func (p *process) Stdout() io.ReadCloser { return p.stdout }

// Stderr implements go-plugin's Runner. What the program writes there is read
// already.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements go-plugin's Runner.
func (p *process) Name() string { return p.path }

// ID implements go-plugin's Runner.
func (p *process) ID() string { return strconv.Itoa(p.pid()) }

func (p *process) pid() int {
	if proc := p.proc.Load(); proc != nil {
		return proc.Pid
	}
	return 0
}

// Diagnose implements go-plugin's Runner; why does it better.
func (p *process) Diagnose(context.Context) string { return "" }

// PluginToHost implements go-plugin's Runner.
func (p *process) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

// HostToPlugin implements go-plugin's Runner.
func (p *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// begun makes the program known as running. One that was given up before it ran is
// ended.
func (p *process) begun() {
	p.proc.Store(p.cmd.Process)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wrong != nil {
		p.kill()
	}
}

// fail ends the program for a reason. The first one counts.
func (p *process) fail(why error) {
	p.mu.Lock()
	if p.wrong == nil {
		p.wrong = why
	}
	p.mu.Unlock()
	p.kill()
}

// end closes the driver and ends its program, within ctx, and with force after it.
func (p *process) end(ctx context.Context) error {
	var out outcome
	err := p.conn.Invoke(ctx, driverpb.Driver_Close_FullMethodName, &driverpb.CloseRequest{}, new(driverpb.CloseResponse), out.options(nil)...)
	if err != nil {
		err = out.err(ctx, filepath.Base(p.path), driverpb.Driver_Close_FullMethodName, err)
	}
	_ = p.life.Close()
	select {
	case <-p.exited:
		if !fault.IsRemote(err) {
			err = nil // it was dead, or died of it: there is nothing left to be closed
		}
	case <-ctx.Done():
		p.fail(fmt.Errorf("it did not end in time: %w", ctx.Err()))
	}
	p.cleanUp()
	return err
}

// ping asks the program for a heartbeat. Every reply is one, also an error of a program that does not know the
// request.
func (p *process) ping(ctx context.Context) error {
	var out outcome
	err := p.conn.Invoke(ctx, grpc_health_v1.Health_Check_FullMethodName,
		&grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName}, new(grpc_health_v1.HealthCheckResponse), out.options(nil)...)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

// cleanUp waits for the end of a program that was told to end or has ended, and
// frees all that this process had for it.
func (p *process) cleanUp() {
	if p.pid() != 0 {
		<-p.exited
		<-p.drained
	}
	if p.client != nil {
		p.client.Kill() // closes the connection; at once, as the program is dead
	}
	if p.dir != nil {
		_ = p.dir.Remove() // what is left is swept by a later process
	}
}

// why is the reason why a program that did not start, or has ended, did so. err is
// what a call to it had.
func (p *process) why(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	killed := p.status != nil && p.status.Error() == "signal: killed"
	c := fault.CodeOf(p.wrong)
	lost := !fault.IsRemote(p.wrong) && (c == fault.Internal || c == fault.Unknown || c == fault.Unavailable) // no more than that the connection broke
	switch {
	case p.wrong != nil && (!lost || killed || p.pid() == 0):
		err = p.wrong
	case p.pid() == 0: // err is why it could not be run
	case p.status == nil:
		err = errors.New("it ended by itself")
	default:
		err = fmt.Errorf("it ended: %w", p.status)
	}
	if said := p.log.last(); said != "" && !fault.IsRemote(err) {
		return fmt.Errorf("%s: %w; its last words: %s", p.path, err, said)
	}
	return fmt.Errorf("%s: %w", p.path, err)
}

// ownTLS makes a certificate for one run of one program, as its PEM form.
func ownTLS() (*tls.Config, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, "", err
	}
	t := &x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, SerialNumber: serial,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(30, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		IsCA:        true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, "", err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		MinVersion:   tls.VersionTLS12,
		ServerName:   "localhost",
	}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

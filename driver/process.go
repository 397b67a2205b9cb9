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

// outputTimeout bounds the time for which the output of a dead program is read. A process that the program has
// started may keep the output open for ever.
const outputTimeout = 200 * time.Millisecond

// process is one run of a driver's program. It replaces go-plugin's own runner. That runner
// does not end programs that hang, or whose children keep the output open, and it panics at
// some log lines.
type process struct {
	cfg         *PluginConfig
	path        string
	program     *os.File // the checked file at path; open until cleanUp, so that the program can be started again
	protocols   []int
	runOpenFile bool // execute the open file, even without a checksum

	cmd    *exec.Cmd
	proc   atomic.Pointer[os.Process] // nil until the program runs
	life   *os.File                   // the worker's end of the program's standard input: closing it ends the program
	stdout *io.PipeReader             // the line of the handshake, if it is valid
	log    *programLog
	client *goplugin.Client
	dir    *tempdir.Dir // the directory of the socket; nil before it is made

	conn     *grpc.ClientConn
	protocol int
	route    *route // for the calls of the worker; nil before the handshake

	exited  chan struct{} // closed when the program has ended
	status  error         // how the program has ended; valid once exited is closed
	drained chan struct{} // closed when the whole output is logged

	mu      sync.Mutex
	failure error // the first argument of fail
}

// errRefused marks the error of a program that was not started because its file is missing, does not have the checksum,
// or could be changed by another user.
var errRefused = errors.New("it was not started")

// openRefused calls openProgram, and marks the error with errRefused.
func openRefused(path, pin string) (*os.File, error) {
	f, err := openProgram(path, pin)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	return f, nil
}

// startProcess runs the program and makes the handshake before ctx ends. The driver is not open yet. The parameter program is the
// checked file at path; the process closes this file. With a checksum, or if the parameter runOpenFile is true, this file is
// executed even if the path has another file meanwhile. After an error no process and no directory is left.
func startProcess(ctx context.Context, program *os.File, runOpenFile bool, protocols []int, path string, cfg *PluginConfig, log *slog.Logger) (*process, error) {
	p := &process{
		cfg: cfg, path: path, program: program, runOpenFile: runOpenFile, protocols: protocols, log: &programLog{log: log, ctx: context.WithoutCancel(ctx)},
		exited: make(chan struct{}), drained: make(chan struct{}),
	}
	return p, p.attempt(ctx, p.connect)
}

// attempt calls f, which is a part of the start. If f fails or ctx ends, attempt ends the program and returns the reason.
func (p *process) attempt(ctx context.Context, f func(context.Context) error) error {
	late := func() error {
		ended := ctx.Err()
		if ended == nil {
			ended = context.DeadlineExceeded // gRPC's own timer was a little earlier
		}
		return fault.New(fault.CodeOf(ended), "it did not start in time (plugin_start_timeout is %s): %w", p.cfg.StartTimeout, ended)
	}
	stop := context.AfterFunc(ctx, func() { p.fail(late()) })
	err := f(ctx)
	if !stop() || errors.Is(err, context.DeadlineExceeded) {
		err = late()
	}
	if err != nil {
		p.fail(err)
		p.cleanUp()
		return p.explain(err)
	}
	return nil
}

// connect starts the program and makes the handshake.
func (p *process) connect(ctx context.Context) error {
	var err error
	if p.dir, err = tempdir.Make(p.cfg.SocketDir, socketPrefix); err != nil {
		return fmt.Errorf("socket_dir: %w", err)
	}
	// A socket's name is p.dir.Path/plugin-dir0123456789/plugin0123456789.
	if n := len(p.dir.Path) + 2*20; n > maxSocket {
		return fault.New(fault.Invalid, "socket_dir: %s is %d bytes too long for the path of a socket: use a shorter one", p.dir.Path, n-maxSocket)
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
		TLSConfig:        conf, // as go-plugin's AutoMTLS, but with a key that TLS libraries of other languages also accept
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			return p, p.prepare(ctx, cmd.Env, dir, cert)
		},
		SkipHostEnv:      true,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: p.dir.Path},
		StartTimeout:     p.cfg.StartTimeout + time.Minute, // ctx ends first, also on a busy machine
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
	p.route = newRoute(p)
	return nil
}

// openDriver calls the driver's Open, and checks the kind of the driver.
func (p *process) openDriver(ctx context.Context, kind string) error {
	var out outcome
	resp := new(driverpb.OpenResponse)
	err := p.conn.Invoke(ctx, driverpb.Driver_Open_FullMethodName, &driverpb.OpenRequest{Options: p.cfg.Options}, resp, out.options(nil)...)
	if err != nil {
		return out.err(ctx, filepath.Base(p.path), driverpb.Driver_Open_FullMethodName, err)
	}
	if resp.GetKind() != kind {
		return fault.New(fault.Invalid, "it is a driver of the kind %s, want %s", quoteText(resp.GetKind()), kind)
	}
	return nil
}

// socketPrefix is the beginning of the names of the directories for sockets.
const socketPrefix = "driver-"

// sweepSockets removes the socket directories that killed services have left.
func sweepSockets(ctx context.Context, cfg *PluginConfig, log *slog.Logger) {
	var owners []int // besides the user of this process
	if u, err := user.Lookup(cfg.User); cfg.User != "" && err == nil {
		if uid, err := strconv.Atoi(u.Uid); err == nil {
			owners = append(owners, uid)
		}
	}
	removed, err := tempdir.Sweep(cfg.SocketDir, socketPrefix, owners...)
	if len(removed) > 0 {
		log.InfoContext(ctx, "socket directories of killed services removed", "directories", removed)
	}
	if err != nil {
		log.WarnContext(ctx, "removal of socket directories of killed services failed", "error", err)
	}
}

// maxSocket is the maximum length of the path of a Unix socket, in bytes.
const maxSocket = 107

// prepare makes the command for [process.Start].
func (p *process) prepare(ctx context.Context, env []string, dir, cert string) error {
	p.cmd = exec.Command(p.path, p.cfg.Args...) //nolint:noctx // fail ends it
	if p.cfg.SHA256 != "" || p.runOpenFile {
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

// logLevel returns the lowest level at which a logger is enabled, so that a program does not send lines that would be
// dropped.
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
	go p.startAndWait(started)
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
		end := time.Now().Add(outputTimeout)
		_ = errors.Join(outR.SetReadDeadline(end), errR.SetReadDeadline(end))
		readers.Wait()
		p.log.close()
		_ = errors.Join(outR.Close(), errR.Close(), life.Close())
		close(p.drained)
	}()
	return nil
}

// readStdout checks the first line of the output, which is the handshake. If the worker accepts the handshake, readStdout
// writes it to line, from which go-plugin reads it. The rest of the output goes to the log.
func (p *process) readStdout(out io.Reader, line *io.PipeWriter) {
	r := bufio.NewReaderSize(out, maxLine)
	first, err := r.ReadSlice('\n')
	if err == nil {
		err = p.checkHandshake(strings.TrimSpace(string(first)))
	} else if len(first) > 0 {
		err = fault.New(fault.Invalid, "it is not a driver: its output begins with %s", quoteText(string(first)))
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

// checkHandshake checks the line of the handshake. go-plugin would accept some wrong lines, and describe others less
// clearly.
func (p *process) checkHandshake(line string) error {
	parts := strings.Split(line, "|")
	if len(parts) < 6 || parts[0] != strconv.Itoa(goplugin.CoreProtocolVersion) || parts[4] != string(goplugin.ProtocolGRPC) {
		return fault.New(fault.Invalid, "it is not a driver: its output begins with %s, where \"1|PROTOCOL|unix|SOCKET|grpc|CERTIFICATE\" is expected", quoteText(line))
	}
	if v, err := strconv.Atoi(parts[1]); err != nil || !slices.Contains(p.protocols, v) {
		ours := make([]string, len(p.protocols))
		for i, v := range p.protocols {
			ours[i] = strconv.Itoa(v)
		}
		todo := "install an earlier program, or upgrade the worker"
		if err != nil || v < p.protocols[0] {
			todo = "install a later program"
		}
		return fault.New(fault.Invalid, "it has protocol %s, but this worker supports only %s: %s", quoteProtocol(parts[1]), strings.Join(ours, " and "), todo)
	}
	switch host, _, _ := net.SplitHostPort(parts[3]); {
	case parts[2] == "unix":
	case parts[2] == "tcp" && net.ParseIP(host).IsLoopback():
	default:
		return fault.New(fault.Invalid, "it listens on %s %s, which is neither a Unix socket nor on the loopback interface", parts[2], quoteText(parts[3]))
	}
	if len(parts[5]) <= 50 { // go-plugin takes a longer text for a certificate
		return fault.New(fault.Invalid, "its handshake has no certificate: a driver must use TLS")
	}
	return nil
}

// quoteProtocol returns the version of a protocol as it is if it is a number, and otherwise in quotes.
func quoteProtocol(v string) string {
	if _, err := strconv.Atoi(v); err == nil {
		return v
	}
	return quoteText(v)
}

// lineWriter writes to the log what go-plugin receives of the program's standard output and error over the
// connection.
type lineWriter struct{ log *programLog }

func (w *lineWriter) Write(b []byte) (int, error) { return w.log.Write(b) }

// Wait implements go-plugin's Runner.
func (p *process) Wait(context.Context) error { <-p.exited; return p.status }

// Kill implements go-plugin's Runner.
func (p *process) Kill(context.Context) error { p.kill(); return nil }

// kill kills the program, if it runs. It never kills a later process with the same id, because os.Process knows whether its
// process has ended.
func (p *process) kill() {
	if proc := p.proc.Load(); proc != nil {
		_ = proc.Kill() // the only error means that the process has ended
	}
}

// Stdout implements go-plugin's Runner.
func (p *process) Stdout() io.ReadCloser { return p.stdout }

// Stderr implements go-plugin's Runner. It is empty, because Start has already begun to read the program's standard
// error.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements go-plugin's Runner.
func (p *process) Name() string { return p.path }

// ID implements go-plugin's Runner.
func (p *process) ID() string { return strconv.Itoa(p.pid()) }

// pid returns the id of the process, or 0 before the program runs.
func (p *process) pid() int {
	if proc := p.proc.Load(); proc != nil {
		return proc.Pid
	}
	return 0
}

// Diagnose implements go-plugin's Runner. It is not used: explain describes errors in more detail.
func (p *process) Diagnose(context.Context) string { return "" }

// PluginToHost implements go-plugin's Runner.
func (p *process) PluginToHost(network, addr string) (string, string, error) {
	return network, addr, nil
}

// HostToPlugin implements go-plugin's Runner.
func (p *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// setRunning stores the running process. It kills the process if fail was called before.
func (p *process) setRunning() {
	p.proc.Store(p.cmd.Process)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure != nil {
		p.kill()
	}
}

// hasExited reports whether the program has ended.
func (p *process) hasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// fail kills the program and stores the reason. Only the first reason is kept.
func (p *process) fail(reason error) {
	p.mu.Lock()
	if p.failure == nil {
		p.failure = reason
	}
	p.mu.Unlock()
	p.kill()
}

// closeDriver closes the driver and ends its program. When ctx ends first, the program is killed.
func (p *process) closeDriver(ctx context.Context) error {
	var out outcome
	err := p.conn.Invoke(ctx, driverpb.Driver_Close_FullMethodName, &driverpb.CloseRequest{}, new(driverpb.CloseResponse), out.options(nil)...)
	if err != nil {
		err = out.err(ctx, filepath.Base(p.path), driverpb.Driver_Close_FullMethodName, err)
	}
	_ = p.life.Close()
	select {
	case <-p.exited:
		if !fault.IsRemote(err) {
			err = nil // the program was dead, or ended during Close: nothing is left to be closed
		}
	case <-ctx.Done():
		p.fail(fmt.Errorf("it did not end in time: %w", ctx.Err()))
	}
	p.cleanUp()
	return err
}

// ping asks the program for a heartbeat. Every reply is a heartbeat, even the error of a program that does not know the
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

// killIfHung kills the program if it sends no heartbeat within PingTimeout, and waits for its end.
func (p *process) killIfHung(ctx context.Context) {
	ping, cancel := context.WithTimeout(ctx, p.cfg.PingTimeout)
	defer cancel()
	if err := p.ping(ping); errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		p.fail(fault.New(fault.Timeout, "it was killed because it hung: no heartbeat within %v", p.cfg.PingTimeout))
		<-p.exited
	}
}

// cleanUp waits for the end of a program that was told to end or has ended. Then it closes the connection and removes the
// socket's directory.
func (p *process) cleanUp() {
	if p.pid() != 0 {
		<-p.exited
		<-p.drained
	}
	if p.client != nil {
		p.client.Kill() // closes the connection; it does not block, because the program is dead
	}
	_ = p.program.Close() // the file was only read
	if p.dir != nil {
		_ = p.dir.Remove() // sweepSockets of a later process removes the rest
	}
}

// explain returns the reason why a program did not start or has ended, with the program's path and its last output. The
// parameter err is the error of the start or of a call. explain uses it if no better reason is known.
func (p *process) explain(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	killed := p.status != nil && p.status.Error() == "signal: killed"
	c := fault.CodeOf(p.failure)
	lost := !fault.IsRemote(p.failure) && (c == fault.Internal || c == fault.Unknown || c == fault.Unavailable) // such an error says only that the connection broke
	switch {
	case p.failure != nil && (!lost || killed || p.pid() == 0):
		err = p.failure
	case p.pid() == 0: // err is the reason why the program could not be executed
	case p.status == nil:
		err = errors.New("it ended by itself")
	default:
		err = fmt.Errorf("it ended: %w", p.status)
	}
	if tail := p.log.last(); tail != "" && !fault.IsRemote(err) {
		return fmt.Errorf("%s: %w; its last output: %s", p.path, err, tail)
	}
	return fmt.Errorf("%s: %w", p.path, err)
}

// ownTLS makes a key and a certificate for one run of one program. It returns the worker's TLS configuration and the
// certificate in PEM form.
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

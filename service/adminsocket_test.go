package service_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service"
)

// TestSocketDirectory: Start makes the directory of a Unix socket, and only the process's user and group can use the directory. If the
// directory cannot be made, the error names it.
func TestSocketDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	p := service.HTTP("unix:"+filepath.Join(dir, "admin.sock"), http.NotFoundHandler())
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o027 != 0 {
		t.Errorf("the directory: %v, %v; want mode 0750 at most", info, err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := service.HTTP("unix:"+file+"/run/admin.sock", http.NotFoundHandler()).Start(t.Context()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a directory that cannot be made: %v", err)
	}
}

// TestUnixSocket: only the user of the process can use the socket. Start replaces the socket of a killed process. It
// does not replace a socket in use, or a file that is not a socket.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "admin.sock")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := service.HTTP("unix:"+path, http.NotFoundHandler()).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use: another process listens there") {
		t.Errorf("a socket in use: %v", err)
	}
	port, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if err := service.HTTP(port.Addr().String(), http.NotFoundHandler()).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use: another process listens there; stop it") {
		t.Errorf("a port in use: %v", err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	p := service.HTTP("unix:"+path, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hi") }))
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	if code, body, err := get(t.Context(), c, "http://admin/"); code != 200 || body != "hi" || err != nil {
		t.Errorf("GET = %d %q %v", code, body, err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := service.HTTP("unix:"+path, http.NotFoundHandler()).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file: %v", err)
	}
}

// TestUnixSocketStays: Start removes a socket only if it learns that no process listens on the socket. It keeps the socket
// if its context has ended, if the listener's queue is full, or if the socket is not a stream socket.
func TestUnixSocketStays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		listen   func(path string) (io.Closer, error)
		canceled bool // the context of Start
		code     fault.Code
		says     string
	}{
		{"context canceled", listenUnix, true, fault.Canceled, "check whether a process listens on the socket: "},
		{"queue full", listenFull, false, fault.Conflict, "address already in use: another process listens there"},
		{"datagrams", func(path string) (io.Closer, error) {
			return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		}, false, fault.Internal, "check whether a process listens on the socket: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "admin.sock")
			l, err := tt.listen(path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.canceled {
				cancel()
			}
			p := service.HTTP("unix:"+path, http.NotFoundHandler())
			if err := p.Start(ctx); err == nil || fault.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("Start = %v (%v), want %v with %q", err, fault.CodeOf(err), tt.code, tt.says)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("the socket was removed: %v", err)
			}
			if err := p.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func listenUnix(path string) (io.Closer, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// listenFull listens on a socket whose queue of connections is full.
func listenFull(path string) (io.Closer, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	sock := &fullSocket{listener: os.NewFile(uintptr(fd), path)}
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		return nil, errors.Join(err, sock.Close())
	}
	for range 10 {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if errors.Is(err, syscall.EAGAIN) {
			return sock, nil
		}
		if err != nil {
			return nil, errors.Join(err, sock.Close())
		}
		sock.queued = append(sock.queued, c)
	}
	return nil, errors.Join(errors.New("the queue of connections does not become full"), sock.Close())
}

type fullSocket struct {
	listener *os.File
	queued   []net.Conn
}

func (s *fullSocket) Close() error {
	for _, c := range s.queued {
		c.Close()
	}
	return s.listener.Close()
}

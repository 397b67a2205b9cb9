package api_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/api"
)

// serving runs a Mux behind a real listener, and returns its address.
func serving(t *testing.T, m http.Handler) string {
	t.Helper()
	p := service.NewHTTP(service.HTTPConfig{Addr: "127.0.0.1:0", Handler: m})
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		_ = p.Stop(ctx) // an error has no effect: some clients keep their connections open
	})
	return p.Addr()
}

// raw sends bytes on a new connection, and returns the status lines of all replies.
func raw(t *testing.T, addr string, text io.Reader) []string {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(c, text) }() // an error has no effect: the server may close the connection
	var out []string
	for lines := bufio.NewScanner(c); lines.Scan(); {
		if status, ok := strings.CutPrefix(lines.Text(), "HTTP/1.1 "); ok {
			out = append(out, status)
		}
	}
	return out
}

// TestHostile: a malformed or oversized request is answered, or its connection is closed, and no part of
// the request stays in memory.
func TestHostile(t *testing.T) {
	t.Parallel()
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler), BodyTimeout: time.Second})
	seen := make(chan string, 10)
	api.Handle(m, "POST /disks", func(_ context.Context, r *api.Request[create]) (api.None, error) {
		seen <- r.Body.Disk.Name
		return api.None{}, nil
	})
	api.Handle(m, "GET /disks", func(context.Context, *api.Request[api.None]) (api.None, error) {
		seen <- "list"
		return api.None{}, nil
	})
	addr := serving(t, m)
	post := func(headers, body string) string {
		return "POST /disks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n" + headers + "\r\n" + body
	}
	good := `{"disk": {"name": "a", "size": 1}}`
	for _, tt := range []struct {
		name, text string
		want       string // the beginning of the only status line; "": the connection is closed, perhaps after a status 4xx
	}{
		{"a valid request", post(fmt.Sprintf("Content-Length: %d\r\n", len(good)), good), "204"},
		{"a header of 1 MiB", post("X-Long: "+strings.Repeat("x", 1<<20)+"\r\n", ""), "431"},
		{"10,000 headers", post(strings.Repeat("X-Many: y\r\n", 10_000), ""), "431"},
		{"a length and chunks", post(fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n", len(good)), "0\r\n\r\n"+good), "400"},
		{"two lengths", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd"), "400"},
		{"a malformed length", post("Content-Length: +3\r\n", "abc"), "400"},
		{"an unknown encoding", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), "501"},
		{"a space before the colon", post("Content-Length : 3\r\n", "abc"), "400"},
		{"a folded header", post("X-A: b\r\n c: d\r\n", ""), ""},
		{"a header with NUL", post("X-A: b\x00c\r\n", ""), "400"},
		{"no host", "GET /disks HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET /disks HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		{"noise", "\x16\x03\x01\x02\x00\x01", "400"},
		{"a request line without an end", "GET /" + strings.Repeat("a", 1<<20), "431"},
		{"10,000 deep", post("Content-Length: 80000\r\n", strings.Repeat(`{"disk":`, 10_000)), "400"},
		{"not UTF-8", post("Content-Length: 24\r\n", "{\"disk\": {\"name\": \"\xff\xfe\"}}"), "400"},
		{"a name twice", post("Content-Length: 48\r\n", `{"disk": {"name": "a", "size": 1, "name": "evil"}`), "400"},
		{"100 MB announced", post("Content-Length: 104857600\r\n", "{"), "413"},
		{"half a body", post("Content-Length: 50\r\n", `{"disk"`), "408"},
	} {
		got := raw(t, addr, strings.NewReader(tt.text))
		if tt.want == "" && len(got) <= 1 && (len(got) == 0 || got[0][0] == '4' || strings.HasPrefix(got[0], "411")) {
			continue
		}
		if len(got) != 1 || !strings.HasPrefix(got[0], tt.want) {
			t.Errorf("%s: answered %q, want one %s", tt.name, got, tt.want)
		}
	}
	// The body has 100 MB in chunks, so its length is not known in advance. No more than MaxBody may be
	// read and kept in memory.
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			chunk := fmt.Sprintf("%x\r\n%s\r\n", 1<<16, strings.Repeat("x", 1<<16))
			parts := []io.Reader{strings.NewReader(post("Transfer-Encoding: chunked\r\n", ""))}
			for range 1600 {
				parts = append(parts, strings.NewReader(chunk))
			}
			if got := raw(t, addr, io.MultiReader(parts...)); len(got) > 1 || len(got) == 1 && !strings.HasPrefix(got[0], "413") {
				t.Errorf("100 MB in chunks: %q", got)
			}
		})
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 32<<20 {
		t.Errorf("%d MiB are kept", kept>>20)
	}
	if len(seen) != 1 || <-seen != "a" {
		t.Errorf("handlers saw more than the one good request")
	}
}

// idleVar is an environment variable. With the value N ADDRESS it makes the test binary a process of N
// clients, which connect and send half a header. The process ends when its input ends.
const idleVar = "API_TEST_IDLE"

func idleClients(ctx context.Context, how string) error {
	count, addr, _ := strings.Cut(how, " ")
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var d net.Dialer
	conns := make([]net.Conn, n)
	for i := range conns {
		if conns[i], err = d.DialContext(ctx, "tcp", addr); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
		if _, err := io.WriteString(conns[i], "GET /disks HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
	}
	fmt.Println("idle")
	_, err = io.Copy(io.Discard, os.Stdin)
	runtime.KeepAlive(conns)
	return err
}

// TestIdleClients: 10,000 clients that connect and send half a header do not stop others from being
// served, and cost less than 40 KiB each. They are in another process, because one process may not have
// enough file descriptors for both ends.
func TestIdleClients(t *testing.T) {
	m := api.New(api.Config{Logger: slog.New(slog.DiscardHandler)})
	api.Handle(m, "GET /disks", func(context.Context, *api.Request[api.None]) (map[string]int, error) {
		return map[string]int{"n": 1}, nil
	})
	addr := serving(t, m)
	const clients = 10_000
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if files.Cur < clients+200 {
		t.Skipf("only %d files may be open", files.Cur)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s", idleVar, clients, addr))
	in, inErr := cmd.StdinPipe()
	out, outErr := cmd.StdoutPipe()
	if err := errors.Join(inErr, outErr, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "idle\n" {
		t.Fatalf("the clients say %q, %v", line, err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)) / clients; each > 40<<10 || each < 1<<10 {
		t.Errorf("each costs %d bytes", each)
	}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for range 10 {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/disks", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("status %d", res.StatusCode)
		}
	}
}

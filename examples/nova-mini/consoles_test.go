package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/service/config"
)

// oneProcess is a client of a nova-mini whose services all run in the process of the test.
type oneProcess struct {
	*testing.T

	url string
}

func (o *oneProcess) do(method, path, body string, out any) int {
	o.Helper()
	r, err := http.NewRequestWithContext(o.Context(), method, o.url+"/v2.1"+path, strings.NewReader(body))
	if err != nil {
		o.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("OpenStack-API-Version", "compute 2.31")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		o.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && out != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(raw, out)
	}
	if err != nil {
		o.Fatalf("%s %s: %s: %v", method, path, raw, err)
	}
	return resp.StatusCode
}

func (o *oneProcess) await(id, status string) {
	o.Helper()
	waittest.Until(o, "the server to be "+status, func() bool {
		var got struct{ Server struct{ Status string } }
		code := o.do("GET", "/servers/"+id, "", &got)
		return got.Server.Status == status || code == 404 && status == ""
	})
}

// console asks for a console and returns the URL of its WebSocket.
func (o *oneProcess) console(id, protocol, kind string) string {
	o.Helper()
	var got struct {
		Console struct{ URL string } `json:"remote_console"`
	}
	waittest.Until(o, "consoles: the API offers them when it knows that all compute services support them", func() bool {
		return o.do("POST", "/servers/"+id+"/remote-consoles", `{"remote_console": {"protocol": "`+protocol+`", "type": "`+kind+`"}}`, &got) == 200
	})
	u, err := url.Parse(got.Console.URL)
	if err != nil {
		o.Fatal(err)
	}
	if inner, ok := strings.CutPrefix(u.Query().Get("path"), "?"); ok { // as noVNC does
		u.Path, u.RawQuery = "/", inner
	}
	u.Scheme = "ws"
	return u.String()
}

// open opens a console and returns the connection and the status. If the console is refused, the connection is nil.
func (o *oneProcess) open(at string) (*websocket.Conn, int) {
	o.Helper()
	ws, resp, err := websocket.Dial(o.Context(), at, &websocket.DialOptions{Subprotocols: []string{"binary"}}) //nolint:bodyclose // the library says that the body need not be closed
	if resp == nil {
		o.Fatal(err)
	}
	return ws, resp.StatusCode
}

// reads reads the data of a console until the text want has arrived. It fails the test if the data end before that.
func (o *oneProcess) reads(c io.Reader, want string) {
	o.Helper()
	var got bytes.Buffer
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), want) {
		n, err := c.Read(buf)
		got.Write(buf[:n])
		if err != nil {
			o.Fatalf("the console has sent %q, %v; want %q", &got, err, want)
		}
	}
}

// TestConsoles: a client opens the URL of a console of the fake driver, and reads and writes. When the server stops, the session ends, and the token is
// refused. A token of a deleted server is refused, too.
func TestConsoles(t *testing.T) { //nolint:paralleltest // the program sets the default logger
	conf := filepath.Join(t.TempDir(), "nova.conf")
	if err := os.WriteFile(conf, []byte("[vnc]\nenabled = true\n[serial_console]\nenabled = true\n[consoleproxy]\nport = 0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := &oneProcess{t, runAll(t, "--config-file", conf)}
	defer http.DefaultClient.CloseIdleConnections()
	var made struct{ Server struct{ ID string } }
	if code := o.do("POST", "/servers", `{"server": {"name": "shown", "flavorRef": "1", "imageRef": "cirros"}}`, &made); code != 202 {
		t.Fatal(code)
	}
	id := made.Server.ID
	o.await(id, "ACTIVE")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	serial, vnc := o.console(id, "serial", "serial"), o.console(id, "vnc", "novnc")
	first, status := o.open(serial)
	if first == nil {
		t.Fatalf("the serial console: %d", status)
	}
	c := websocket.NetConn(ctx, first, websocket.MessageBinary)
	o.reads(c, "shown login:")
	if _, err := io.WriteString(c, "hello, console"); err != nil {
		t.Fatal(err)
	}
	o.reads(c, "hello, console")
	second, status := o.open(vnc)
	if second == nil {
		t.Fatalf("the VNC console: %d", status)
	}
	o.reads(websocket.NetConn(ctx, second, websocket.MessageBinary), "RFB 003.008\n")
	_ = second.CloseNow()
	u, err := url.Parse(serial)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "none", u.Query().Get("token") + "x"} {
		if ws, status := o.open("ws://" + u.Host + "/?token=" + bad); ws != nil || status != 401 {
			t.Errorf("the token %q: %d", bad, status)
		}
	}
	if code := o.do("POST", "/servers/"+id+"/action", `{"os-stop": null}`, nil); code != 202 {
		t.Fatal(code)
	}
	if rest, err := io.ReadAll(c); err == nil { // the connection is closed by the console
		t.Logf("the session ended after %q", rest)
	}
	o.await(id, "SHUTOFF")
	if ws, status := o.open(serial); ws != nil || status != 401 {
		t.Errorf("the console of a stopped server: %d", status)
	}
	if code := o.do("GET", "/os-console-auth-tokens/"+u.Query().Get("token"), "", nil); code != 404 {
		t.Errorf("the token of a stopped server: %d", code)
	}
	if code := o.do("POST", "/servers/"+id+"/remote-consoles", `{"remote_console": {"protocol": "serial", "type": "serial"}}`, nil); code != 409 {
		t.Errorf("a console of a stopped server: %d", code)
	}
	if code := o.do("DELETE", "/servers/"+id, "", nil); code != 204 {
		t.Fatal(code)
	}
	o.await(id, "")
	if code := o.do("GET", "/os-console-auth-tokens/"+u.Query().Get("token"), "", nil); code != 404 {
		t.Errorf("the token of a deleted server: %d", code)
	}
}

// TestConsoleHosts: by default the console proxy uses the address that the driver reports. Consoles with loopback addresses are allowed
// only for the hosts in local_hosts. By default this is only the host of the proxy's own machine.
func TestConsoleHosts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		conf, process, host string
		want                bool
	}{
		{"", component.AllInOne, "node-1", true},
		{"", "consoleproxy", "this", true},
		{"", "consoleproxy", "node-1", false},
		{"[consoleproxy]\nlocal_hosts = node-1, node-2\n", "consoleproxy", "node-2", true},
		{"[consoleproxy]\nlocal_hosts = node-1, node-2\n", "consoleproxy", "this", false},
	} {
		conf := filepath.Join(t.TempDir(), "nova.conf")
		if err := os.WriteFile(conf, []byte(tt.conf), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Open[options](config.Source{Files: []string{conf}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		o := c.Current()
		if o.VNC.ProxyClient != "" || o.SerialConsole.ProxyClient != "" {
			t.Errorf("the addresses for the proxy: %q, %q", o.VNC.ProxyClient, o.SerialConsole.ProxyClient)
		}
		p := &process{Name: tt.process, Host: "this", Options: o}
		if got := isLocal(p, tt.host); got != tt.want {
			t.Errorf("%+v: %t", tt, got)
		}
	}
}

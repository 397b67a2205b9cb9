package api_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/api"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// consoles starts a fake compute service on host n1 that opens consoles. If failed holds an error, the service answers each request with this
// error.
func (c *cloud) consoles(failed *atomic.Pointer[error]) {
	c.Helper()
	srv := rpc.NewServer(c.bus, rpc.ServerConfig{Interface: compute.Worker, Host: "n1", Logger: slog.New(slog.DiscardHandler)})
	rpc.Handle(srv, compute.OpenConsole, func(_ context.Context, r *compute.OpenConsoleRequest) (*compute.OpenConsoleReply, error) {
		if err := failed.Load(); err != nil {
			return nil, *err
		}
		return &compute.OpenConsoleReply{Host: "10.0.0.1", Port: map[compute.ConsoleType]int{compute.VNC: 5900, compute.Serial: 10000}[r.Type]}, nil
	})
	if err := srv.Start(rpctest.Partial(c.Context())); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		if err := srv.Stop(context.Background()); err != nil {
			c.Error(err)
		}
	})
}

// withConsoles enables both types of consoles.
func withConsoles(cfg *api.Config) {
	cfg.Consoles = api.Consoles{TTL: time.Minute, URL: map[compute.ConsoleType]func() string{
		compute.VNC:    func() string { return "http://proxy:6080/vnc_lite.html?autoconnect=1" },
		compute.Serial: func() string { return "wss://proxy:6080/" },
	}}
}

// TestConsoles: a client gets a console URL that contains a token. The token identifies the console. The database stores only the hash of the
// token. The token expires after its TTL. It is invalid once the server is deleted, is stopped or is on
// another host, or its console has another address.
func TestConsoles(t *testing.T) {
	t.Parallel()
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		var failed atomic.Pointer[error]
		c.consoles(&failed)
		id := c.addActive("a")
		last := ""
		for _, tt := range []struct {
			version, path, body, begins string
			port                        int
		}{
			{"2.1", "/action", `{"os-getVNCConsole": {"type": "novnc"}}`, "http://proxy:6080/vnc_lite.html?autoconnect=1&path=%3Ftoken%3D", 5900},
			{"2.5", "/action", `{"os-getSerialConsole": {"type": "serial"}}`, "wss://proxy:6080/?token=", 10000},
			{"2.6", "/remote-consoles", `{"remote_console": {"protocol": "vnc", "type": "novnc"}}`, "http://proxy:6080/vnc_lite.html?autoconnect=1&path=%3Ftoken%3D", 5900},
			{"2.99", "/remote-consoles", `{"remote_console": {"protocol": "serial", "type": "serial"}}`, "wss://proxy:6080/?token=", 10000},
		} {
			reply := c.want(200, tt.version, "member", "POST", "/servers/"+id+tt.path, tt.body)
			var got map[string]struct{ Protocol, Type, URL string }
			if err := json.Unmarshal([]byte(reply), &got); err != nil {
				t.Fatal(err)
			}
			at := got["console"].URL + got["remote_console"].URL
			token, found := strings.CutPrefix(at, tt.begins)
			if !found || token == "" || token == last || url.QueryEscape(token) != token || tt.path == "/remote-consoles" && got["remote_console"].Protocol == "" {
				t.Fatalf("%s: %s, want %s", tt.body, reply, tt.begins)
			}
			last = token
			tokens := "/os-console-auth-tokens/" + token
			c.compareWith(map[string]string{"console.internal_access_path": "the sample's console has a path"}, "2.31", "admin", "GET", tokens, "", "os-console-auth-tokens/v2.31/get-console-connect-info-get-resp", 200)
			c.compareWith(map[string]string{"-console.tls_port": "as in Nova, only consoles of the type spice-direct have it"}, "2.99", "admin", "GET", tokens, "", "os-console-auth-tokens/v2.99/get-console-connect-info-get-resp", 200)
			info := c.want(200, "2.31", "admin", "GET", "/os-console-auth-tokens/"+token+"?x=y", "")
			var shown struct {
				Console struct {
					Server string  `json:"instance_uuid"`
					Host   string  `json:"host"`
					Port   int     `json:"port"`
					Path   *string `json:"internal_access_path"`
				} `json:"console"`
			}
			if err := json.Unmarshal([]byte(info), &shown); err != nil || shown.Console.Server != id || shown.Console.Host != "10.0.0.1" || shown.Console.Port != tt.port || shown.Console.Path != nil {
				t.Errorf("the token of %s: %s, %v", tt.body, info, err)
			}
		}
		var hashes []string
		if err := c.db.SelectContext(t.Context(), &hashes, `SELECT token_hash FROM console_tokens`); err != nil || len(hashes) != 4 || strings.Contains(strings.Join(hashes, " "), last) {
			t.Errorf("the database has %q, %v", hashes, err)
		}
		path := "/os-console-auth-tokens/" + last
		if strings.Contains(c.log.String(), last) {
			t.Errorf("the log has the token: %s", c.log)
		}
		c.want(400, "2.30", "admin", "GET", path, "")
		c.want(200, "2.99", "admin", "GET", path, "")
		c.want(400, "2.99", "admin", "GET", path+"?x=y", "")
		c.want(403, "2.31", "member", "GET", path, "")
		for _, other := range []string{"none", hashes[0], strings.ToLower(last)} {
			c.want(404, "2.31", "admin", "GET", "/os-console-auth-tokens/"+other, "")
		}
		for _, change := range [][2]string{
			{`vm_state = 'soft-delete'`, `vm_state = 'active'`}, {`host = 'n2'`, `host = 'n1'`}, {`host = NULL`, `host = 'n1'`},
		} {
			c.exec(`UPDATE servers SET ` + change[0])
			c.want(404, "2.31", "admin", "GET", path, "")
			c.exec(`UPDATE servers SET ` + change[1])
		}
		for _, tt := range []struct {
			err  error
			want int
		}{
			{fault.New(fault.Precondition, "the server is SHUTDOWN"), 404}, {fault.New(fault.NotFound, "no such server"), 404}, {fault.New(fault.Unavailable, "secret host"), 503},
		} {
			failed.Store(&tt.err)
			if reply := c.want(tt.want, "2.31", "admin", "GET", path, ""); tt.want == 404 && !strings.Contains(reply, "Token not found") || strings.Contains(reply, "secret") {
				t.Errorf("while the compute service says %v: %s", tt.err, reply)
			}
		}
		failed.Store(nil)
		c.exec(`UPDATE console_tokens SET port = port + 1`)
		c.want(404, "2.31", "admin", "GET", path, "") // another server may have the old address
		c.exec(`UPDATE console_tokens SET port = port - 1`)
		c.want(200, "2.31", "admin", "GET", path, "")
		c.exec(`UPDATE console_tokens SET expires_at = ?`, time.Now().UTC().Add(-time.Second))
		if reply := c.want(404, "2.31", "admin", "GET", path, ""); !strings.Contains(reply, "Token not found") {
			t.Errorf("an expired token: %s", reply)
		}
		if err := c.store.PruneConsoleTokens(t.Context()); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := c.db.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM console_tokens`); err != nil || n != 0 {
			t.Errorf("%d tokens are left, %v", n, err)
		}
	}, withConsoles)
}

// TestRefusedConsoles: a refused request for a console gets Nova's text, and makes no token.
func TestRefusedConsoles(t *testing.T) {
	t.Parallel()
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		var failed atomic.Pointer[error]
		c.consoles(&failed)
		id := c.addActive("a")
		remote := func(protocol, kind string) string {
			return `{"remote_console": {"protocol": "` + protocol + `", "type": "` + kind + `"}}`
		}
		for _, tt := range []struct {
			who, body string
			failed    error
			status    int
			says      string
		}{
			{"stranger", remote("vnc", "novnc"), nil, 404, "could not be found"},
			{"member", remote("spice", "spice-html5"), nil, 400, "Unavailable console type spice-html5."},
			{"member", remote("mks", "webmks"), nil, 400, "Unavailable console type webmks."},
			{"member", remote("rdp", "rdp-html5"), nil, 400, "Unavailable console type rdp."},
			{"member", remote("vnc", "xvpvnc"), nil, 400, "Invalid console type xvpvnc"},
			{"member", remote("vnc", "serial"), nil, 400, "Invalid console type serial"},
			{"member", remote("vnc", "spice-direct"), nil, 400, "type"},
			{"member", remote("vnc", "novnc"), fault.New(fault.Unimplemented, "no"), 501, "The requested functionality is not supported."},
			{"member", remote("vnc", "novnc"), fault.New(fault.Precondition, "stopped"), 409, "Instance " + id + " is not ready"},
			{"member", remote("vnc", "novnc"), fault.New(fault.NotFound, "gone"), 409, "Instance " + id + " is not ready"},
			{"member", remote("vnc", "novnc"), fault.New(fault.Invalid, "n1 is odd"), 500, ""},
		} {
			failed.Store(nil)
			if tt.failed != nil {
				failed.Store(&tt.failed)
			}
			if reply := c.want(tt.status, "2.8", tt.who, "POST", "/servers/"+id+"/remote-consoles", tt.body); !strings.Contains(reply, tt.says) || strings.Contains(reply, "odd") {
				t.Errorf("%s: %s, want %q", tt.body, reply, tt.says)
			}
		}
		c.exec(`UPDATE servers SET host = NULL`)
		c.want(409, "2.8", "member", "POST", "/servers/"+id+"/remote-consoles", remote("vnc", "novnc"))
		var n int
		if err := c.db.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM console_tokens`); err != nil || n != 0 {
			t.Errorf("%d tokens were made, %v", n, err)
		}
	}, withConsoles)
}

// TestTokensEndWithServer: the deletion of a server removes its tokens.
func TestTokensEndWithServer(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.addActive("a")
		if _, err := c.store.AddConsoleToken(t.Context(), &store.ConsoleToken{ServerID: id, ComputeHost: "n1", Type: compute.VNC, Host: "h", Port: 1}, time.Hour); err != nil {
			t.Fatal(err)
		}
		if err := db.Tx(t.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, id) }); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := c.db.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM console_tokens`); err != nil || n != 0 {
			t.Errorf("%d tokens are left, %v", n, err)
		}
	})
}

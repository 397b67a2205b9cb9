package api_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/rpctest"
)

// TestBroken: a reply about an internal failure does not name brokers, hosts, ports or users. The log has the cause with the id
// of the request.
func TestBroken(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		own := must(c.list("member", "servers", "status=ACTIVE"))[0].text("id")
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET host = 'node-7' WHERE id = ?`, own); err != nil {
			c.Fatal(err)
		}
		if _, err := c.db.ExecContext(c.Context(), `UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?`, own); err != nil {
			c.Fatal(err)
		}
		c.addHosts("node-7")
		const secret = "dial tcp 10.9.8.7:5672: user nova is refused"
		// broken sends a request. It fails the test unless the reply has the status and the text, and not the secret, and the log has the secret.
		broken := func(method, path, body string, status int, says, secret string) {
			c.Helper()
			c.log.Reset()
			r := httptest.NewRequestWithContext(c.Context(), method, path, strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Auth-Token", "member")
			w := httptest.NewRecorder()
			c.ServeHTTP(w, r)
			if w.Code != status || !strings.Contains(w.Body.String(), says) || strings.Contains(w.Body.String(), secret) || strings.Contains(w.Body.String(), "node-7") {
				c.Errorf("%s %s %s = %d %s; want %d %s", method, path, body, w.Code, w.Body, status, says)
			}
			id := w.Header().Get("X-Openstack-Request-Id")
			if log := c.log.String(); !slices.ContainsFunc(strings.Split(log, "\n"), func(line string) bool { return strings.Contains(line, secret) && strings.Contains(line, id) }) {
				c.Errorf("%s %s: the log does not have %q under %s:\n%s", method, path, secret, id, log)
			}
		}
		c.down = fault.New(fault.Unavailable, "%s", secret)
		const refused = "The service cannot accept the request now: other services cannot be reached."
		action := "/v2.1/servers/" + own + "/action"
		broken("POST", "/v2.1/servers", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x"}}`, 503, refused, secret)
		broken("DELETE", "/v2.1/servers/"+own, "", 503, refused, secret)
		broken("POST", action, `{"os-stop": null}`, 503, refused, secret)
		broken("POST", action, `{"resize": {"flavorRef": "2"}}`, 503, refused, secret)
		c.down = fmt.Errorf("%w: %s", fault.New(fault.Unavailable, "not ready: bus"), secret)
		broken("GET", "/readyz", "", 503, `{"status":"unavailable","reason":"not ready: bus"}`, secret)
		c.down = nil

		const ask, unable = `{"os-getConsoleOutput": {}}`, "Unable to get console log of instance "
		broken("POST", action, ask, 503, unable, "node-7") // without a compute service
		var answer error
		srv := rpc.NewServer(c.bus, rpc.ServerConfig{Interface: compute.Worker, Host: "node-7", Logger: slog.New(slog.DiscardHandler)})
		rpc.Handle(srv, compute.ReadConsole, func(context.Context, *compute.ConsoleRequest) (*compute.ConsoleReply, error) { return nil, answer })
		if err := srv.Start(rpctest.Partial(c.Context())); err != nil {
			c.Fatal(err)
		}
		defer func() { _ = srv.Stop(context.WithoutCancel(c.Context())) }()
		for code, status := range map[fault.Code]int{
			fault.Internal: 500, fault.Denied: 500, fault.Unauthenticated: 500, fault.Exhausted: 500, fault.NotFound: 404, fault.Unavailable: 503, fault.Conflict: 409,
		} {
			answer = fault.New(code, "%s", secret)
			says := unable
			if status == 500 {
				says = "Unexpected API Error."
			}
			broken("POST", action, ask, status, says, secret)
		}
	})
}

package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/api"
)

// consoleHandlers are the handlers of the actions that read or open consoles, and of RDP, which Nova has removed.
var consoleHandlers = map[compute.Action]actionHandler{
	compute.ConsoleOutput: actionOf((*server).console),
	compute.VNCConsole:    actionOf((*server).vncConsole),
	compute.SPICEConsole:  actionOf((*server).spiceConsole),
	compute.RDPConsole: func(_ *server, g *api.Group, def api.Route, _ compute.ActionInfo) {
		def.Rule, def.Summary, def.Errors = "", removed, []int{http.StatusGone}
		registerRefusal(g, def, errGone)
	},
	compute.SerialConsole: actionOf((*server).serialConsole),
}

type console struct {
	Console struct {
		Length lineCount `json:"length,omitzero"`
	} `json:"os-getConsoleOutput"`
}

// lineCount is a number of lines, given as a number or as a text. The values -1 and null mean all lines.
type lineCount struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (lineCount) JSONSchema() string {
	return `{"type": ["integer", "string", "null"], "pattern": "^-?[0-9]+$", "minimum": -1}`
}

type consoleOutput struct {
	Output string `json:"output"`
}

// lines returns the number of lines that the client asks for, or -1 for all lines. Errors: Invalid for a number such as 1e1, which the schema accepts.
func (c *console) lines() (int, error) {
	text := plainText(c.Console.Length.RawMessage)
	n, err := strconv.Atoi(text)
	switch {
	case text == "", errors.Is(err, strconv.ErrRange):
		return -1, nil
	case err != nil:
		return 0, fault.New(fault.Invalid, "Invalid input received: length must be an integer")
	}
	return n, nil
}

// lastLines returns the last n lines of a text, or the whole text if n is negative. It counts lines as Nova does: if the text ends with a line feed, an empty line follows.
func lastLines(text string, n int) string {
	switch lines := strings.Split(text, "\n"); {
	case n == 0:
		return ""
	case n > 0 && n < len(lines):
		return strings.Join(lines[len(lines)-n:], "\n")
	}
	return text
}

// controls matches the characters that Nova removes from a console log.
var controls = regexp.MustCompile("[\x00-\x08\x0b-\x1f]")

// hideDetails adds a text for clients to an error of another service, because the error's own text names hosts and topics. A
// code that would blame the client's request, such as Invalid or Denied, becomes Internal.
func hideDetails(err error, text string) error {
	code := fault.CodeOf(err)
	switch code {
	case fault.NotFound, fault.Conflict, fault.Precondition, fault.Unavailable, fault.Timeout, fault.Unknown, fault.Canceled:
	default:
		code = fault.Internal
	}
	return fault.WithUser(fault.New(code, "%w", err), text)
}

// console reads the server's console log from the compute service of the server's host.
func (s *server) console(ctx context.Context, r *api.Request[console], srv *store.Server) (out consoleOutput, err error) {
	lines, err := r.Body.lines()
	if err != nil {
		return out, err
	}
	if srv.Host == nil {
		return out, store.NotReady(srv.ID)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.ReadConsole, *srv.Host, &compute.ConsoleRequest{ServerID: srv.ID, Lines: max(lines, 0)})
	switch {
	case errors.Is(err, fault.Unimplemented):
		return out, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "Unable to get console log, functionality not implemented"))
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "console log not read", "server", srv.ID, "host", *srv.Host, "error", err)
		return out, hideDetails(err, fmt.Sprintf("Unable to get console log of instance %s.", srv.ID))
	}
	return consoleOutput{controls.ReplaceAllString(lastLines(got.Output, lines), "")}, nil
}

// Consoles says which consoles clients may open, and how.
type Consoles struct {
	// URL has a function for each enabled type of console. The function returns the URL for clients, without a token: for VNC the URL of
	// noVNC's page, for other types the URL of the console proxy.
	URL map[compute.ConsoleType]func() string
	// TTL is the time for which a token is valid.
	TTL time.Duration
}

// consoleKinds has the types of consoles that nova-mini has, with Nova's names, by protocol.
var consoleKinds = map[string]struct {
	name string
	t    compute.ConsoleType
}{"vnc": {"novnc", compute.VNC}, "serial": {"serial", compute.Serial}}

type (
	vncConsole struct {
		Console struct {
			Type string `json:"type" enum:"novnc,xvpvnc"`
		} `json:"os-getVNCConsole"`
	}
	spiceConsole struct {
		Console struct {
			Type string `json:"type" enum:"spice-html5"`
		} `json:"os-getSPICEConsole"`
	}
	serialConsole struct {
		Console struct {
			Type string `json:"type" enum:"serial"`
		} `json:"os-getSerialConsole"`
	}
)

// openedConsole is the reply to an action for a console.
type openedConsole struct {
	Console struct {
		Type string `json:"type"`
		URL  string `json:"url" format:"uri"`
	} `json:"console"`
}

func (s *server) vncConsole(ctx context.Context, r *api.Request[vncConsole], srv *store.Server) (openedConsole, error) {
	return s.openOld(ctx, srv, "vnc", r.Body.Console.Type)
}

func (s *server) spiceConsole(ctx context.Context, r *api.Request[spiceConsole], srv *store.Server) (openedConsole, error) {
	return s.openOld(ctx, srv, "spice", r.Body.Console.Type)
}

func (s *server) serialConsole(ctx context.Context, r *api.Request[serialConsole], srv *store.Server) (openedConsole, error) {
	return s.openOld(ctx, srv, "serial", r.Body.Console.Type)
}

// malformedRequest returns Nova's error for a malformed request. The error gives no reason.
func malformedRequest() error {
	return fault.New(fault.Invalid, "The server could not comply with the request since it is either malformed or otherwise incorrect.")
}

// openOld opens a console for one of the actions that Nova had until 2.5.
func (s *server) openOld(ctx context.Context, srv *store.Server, protocol, kind string) (out openedConsole, err error) {
	out.Console.Type = kind
	out.Console.URL, err = s.openConsole(ctx, srv, protocol, kind)
	return out, err
}

// The names of the rules, as in Nova.
const (
	ruleConsoles      = "os_compute_api:os-remote-consoles"
	ruleConsoleTokens = "os_compute_api:os-console-auth-tokens" //nolint:gosec // the name of a rule
)

var consoleRules = []rule{
	{ruleConsoleTokens, "rule:context_is_admin", "Show the console that a token opens", "GET", "/os-console-auth-tokens/{console_token}"},
}

// consoleRoutes registers the route remote-consoles, which has replaced the actions, and the route of tokens.
func (s *server) consoleRoutes(all, withBody *api.Group) {
	def := api.Route{Pattern: "POST /servers/{id}/remote-consoles", Min: "2.6", Rule: ruleConsoles, Summary: "Get the address of a server's console", Errors: []int{notFound, conflict, http.StatusNotImplemented, unavailable}}
	api.HandleTarget(withBody, def, s.target(), s.remoteConsole)
	token := api.Route{Pattern: "GET /os-console-auth-tokens/{token}", Rule: ruleConsoleTokens, Summary: "Show the console that a token opens", SecretPath: true}
	early, late := token, token
	early.Max, late.Min, late.Errors, late.Query = "2.30", "2.31", []int{notFound, unavailable}, tokenQuery
	api.HandleRoute(all, early, func(context.Context, *api.Request[api.None]) (api.None, error) { return api.None{}, malformedRequest() })
	api.HandleRoute(all, late, s.showConsoleToken)
}

// tokenQuery is the query of the route of tokens. Before 2.99 all parameters are ignored; since then they are refused.
var tokenQuery = []api.Schema{{Max: "2.98", JSON: `{"type": "object"}`}, {Min: "2.99", JSON: `{"type": "object", "additionalProperties": false}`}}

// remoteConsole is the body of a request for a console. A field of the request has several fields here, one for each of Nova's
// versions that has added values to the field's enumeration.
type remoteConsole struct {
	Console struct {
		Protocol   string `json:"protocol" until:"2.7" enum:"vnc,spice,serial,rdp"`
		Protocol28 string `json:"protocol_28" name:"protocol" since:"2.8" enum:"vnc,spice,serial,rdp,mks"`
		Type       string `json:"type" until:"2.7" enum:"novnc,xvpvnc,spice-html5,serial,rdp-html5"`
		Type28     string `json:"type_28" name:"type" since:"2.8" until:"2.98" enum:"novnc,xvpvnc,spice-html5,serial,rdp-html5,webmks"`
		Type299    string `json:"type_299" name:"type" since:"2.99" enum:"novnc,xvpvnc,spice-html5,serial,rdp-html5,webmks,spice-direct"`
	} `json:"remote_console"`
}

// openedRemoteConsole is the reply to a remoteConsole.
type openedRemoteConsole struct {
	Console struct {
		Protocol string `json:"protocol"`
		Type     string `json:"type"`
		URL      string `json:"url" format:"uri"`
	} `json:"remote_console"`
}

func (s *server) remoteConsole(ctx context.Context, r *api.Request[remoteConsole], srv *store.Server) (out openedRemoteConsole, err error) {
	in := r.Body.Console
	out.Console.Protocol, out.Console.Type = cmp.Or(in.Protocol, in.Protocol28), cmp.Or(in.Type, in.Type28, in.Type299)
	if out.Console.Protocol == "rdp" {
		return out, fault.New(fault.Invalid, "Unavailable console type %s.", out.Console.Protocol)
	}
	out.Console.URL, err = s.openConsole(ctx, srv, out.Console.Protocol, out.Console.Type)
	return out, err
}

// openConsole makes a token for a console of a server, and returns the URL with the token. The parameter kind is Nova's type of the console. Errors: Conflict if the
// server does not run; Invalid if the type is not enabled; Unimplemented if the driver does not support the type.
func (s *server) openConsole(ctx context.Context, srv *store.Server, protocol, kind string) (string, error) {
	if srv.Host == nil {
		return "", store.NotReady(srv.ID)
	}
	want, known := consoleKinds[protocol]
	base := s.cfg.Consoles.URL[want.t]
	switch {
	case !known, base == nil:
		return "", fault.New(fault.Invalid, "Unavailable console type %s.", kind)
	case want.name != kind:
		return "", fault.New(fault.Invalid, "Invalid console type %s", kind)
	}
	at, err := rpc.Call(ctx, s.cfg.Client, compute.OpenConsole, *srv.Host, &compute.OpenConsoleRequest{ServerID: srv.ID, Type: want.t})
	switch {
	case errors.Is(err, fault.Unimplemented):
		s.cfg.Logger.DebugContext(ctx, "console not supported", "server", srv.ID, "host", *srv.Host, "error", err)
		return "", notImplemented(store.ErrNotSupported)
	case errors.Is(err, fault.ErrVersionCap):
		return "", fault.WithUser(fault.New(fault.Unavailable, "%w", err), "Consoles are not available before all compute services are upgraded.")
	case errors.Is(err, fault.Precondition), errors.Is(err, fault.NotFound):
		s.cfg.Logger.DebugContext(ctx, "console not ready", "server", srv.ID, "host", *srv.Host, "error", err)
		return "", store.NotReady(srv.ID)
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "console not opened", "server", srv.ID, "host", *srv.Host, "error", err)
		return "", hideDetails(err, fmt.Sprintf("Unable to get the console of instance %s.", srv.ID))
	}
	t := store.ConsoleToken{ServerID: srv.ID, ComputeHost: *srv.Host, Type: want.t, Host: at.Host, Port: at.Port, URLBase: base()}
	token, err := s.cfg.Store.AddConsoleToken(ctx, &t, s.cfg.Consoles.TTL)
	if err != nil {
		return "", err
	}
	return consoleURL(t.URLBase, want.t, token)
}

// consoleURL adds a token to the URL for clients. noVNC opens its WebSocket with the query in the parameter path, so for VNC the token is in this parameter.
func consoleURL(base string, t compute.ConsoleType, token string) (string, error) {
	u, err := url.Parse(base)
	if err != nil {
		return "", fmt.Errorf("the URL of consoles: %w", err)
	}
	q := u.Query()
	if t == compute.VNC {
		q.Set("path", q.Get("path")+"?token="+token)
	} else {
		q.Set("token", token)
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}

// consoleInfo is the reply with the address of the console that a token opens.
type consoleInfo struct {
	Console struct {
		Server string     `json:"instance_uuid" format:"uuid"`
		Host   string     `json:"host"`
		Port   int        `json:"port"`
		Path   alwaysNull `json:"internal_access_path"`
	} `json:"console"`
}

// FindConsole returns the console of a token. The compute service must confirm that the console still has the address that is stored with
// the token: after the server was stopped, the console of another server may have this address. Errors: NotFound; Unavailable, while the
// compute service does not answer.
func FindConsole(ctx context.Context, s *store.Store, c *rpc.Client, token string) (*store.ConsoleToken, error) {
	t, err := s.ConsoleToken(ctx, token)
	if err != nil {
		return nil, err
	}
	now, err := rpc.Call(ctx, c, compute.OpenConsole, t.ComputeHost, &compute.OpenConsoleRequest{ServerID: t.ServerID, Type: t.Type})
	switch {
	case errors.Is(err, fault.ErrVersionCap):
		return nil, fault.New(fault.Unavailable, "%w", err)
	case errors.Is(err, fault.Precondition):
		return nil, fault.New(fault.NotFound, "%w", err)
	case err != nil:
		return nil, err
	case now.Host != t.Host || now.Port != t.Port:
		return nil, fault.New(fault.NotFound, "the console of server %s has another address now", t.ServerID)
	}
	return t, nil
}

func (s *server) showConsoleToken(ctx context.Context, r *api.Request[api.None]) (out consoleInfo, err error) {
	t, err := FindConsole(ctx, s.cfg.Store, s.cfg.Client, r.PathValue("token"))
	switch {
	case errors.Is(err, fault.NotFound):
		return out, fault.WithUser(err, "Token not found")
	case err != nil:
		return out, hideDetails(err, "Unable to check the console of the token.")
	}
	out.Console.Server, out.Console.Host, out.Console.Port = t.ServerID, t.Host, t.Port
	return out, nil
}

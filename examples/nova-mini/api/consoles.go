package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/api"
)

// consoleHandlers are the handlers of the actions about consoles.
var consoleHandlers = map[compute.Action]actionHandler{
	compute.ConsoleOutput: actionOf((*server).console),
	compute.VNCConsole:    actionOf((*server).vncConsole),
	compute.SPICEConsole:  actionOf((*server).spiceConsole),
	compute.RDPConsole:    actionOf((*server).rdpConsole),
	compute.SerialConsole: actionOf((*server).serialConsole),
}

type console struct {
	Console struct {
		Length lineCount `json:"length,omitzero"`
	} `json:"os-getConsoleOutput"`
}

// lineCount is a number of lines, or a number as a text. -1 and null are all lines.
type lineCount struct{ json.RawMessage }

// JSONSchema implements api.JSONSchemer.
func (lineCount) JSONSchema() string {
	return `{"type": ["integer", "string", "null"], "pattern": "^-?[0-9]+$", "minimum": -1}`
}

type consoleOutput struct {
	Output string `json:"output"`
}

// lines returns the number of lines that the client asks for. -1: all lines.
func (c *console) lines() int {
	n, err := strconv.Atoi(plainText(c.Console.Length.RawMessage))
	if err != nil { // the request has no number of lines, or a number above the largest int
		return -1
	}
	return n
}

// lastLines returns the last lines of a text as Nova counts them: after the end of the last line there is one more, which is empty.
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

// hideDetails adds to an error of another service the text that clients read, because the text of the error itself names
// hosts and topics. A code that would blame the client's request, such as Invalid or Denied, becomes Internal.
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
	if srv.Host == nil {
		return out, store.NotReady(srv.ID)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.ReadConsole, *srv.Host, &compute.ConsoleRequest{ServerID: srv.ID, Lines: max(r.Body.lines(), 0)})
	switch {
	case errors.Is(err, fault.Unimplemented):
		return out, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "Unable to get console log, functionality not implemented"))
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "console log not read", "server", srv.ID, "host", *srv.Host, "error", err)
		return out, hideDetails(err, fmt.Sprintf("Unable to get console log of instance %s.", srv.ID))
	}
	return consoleOutput{controls.ReplaceAllString(lastLines(got.Output, r.Body.lines()), "")}, nil
}

// A request for the address of a console is refused as Nova refuses it if the type of the console is not enabled.
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

func (s *server) vncConsole(_ context.Context, r *api.Request[vncConsole], srv *store.Server) (api.None, error) {
	return api.None{}, noConsole(srv, r.Body.Console.Type)
}

func (s *server) spiceConsole(_ context.Context, r *api.Request[spiceConsole], srv *store.Server) (api.None, error) {
	return api.None{}, noConsole(srv, r.Body.Console.Type)
}

func (s *server) serialConsole(_ context.Context, r *api.Request[serialConsole], srv *store.Server) (api.None, error) {
	return api.None{}, noConsole(srv, r.Body.Console.Type)
}

func (s *server) rdpConsole(context.Context, *api.Request[api.None], *store.Server) (api.None, error) {
	return api.None{}, fault.New(fault.Invalid, "The server could not comply with the request since it is either malformed or otherwise incorrect.")
}

// ruleConsoles is the name of the rule, as in Nova.
const ruleConsoles = "os_compute_api:os-remote-consoles"

// consoleRoutes registers the route that has replaced the actions.
func (s *server) consoleRoutes(_, withBody *api.Group) {
	def := api.Route{Pattern: "POST /servers/{id}/remote-consoles", Min: "2.6", Rule: ruleConsoles, Summary: "Get the address of a server's console", Errors: []int{notFound, conflict}}
	api.HandleTarget(withBody, def, s.target(), s.remoteConsole)
}

// remoteConsole asks for a console. The enumerations are those of Nova's versions: an earlier one has fewer values.
type remoteConsole struct {
	Console struct {
		Protocol   string `json:"protocol" until:"2.7" enum:"vnc,spice,serial,rdp"`
		Protocol28 string `json:"protocol_28" name:"protocol" since:"2.8" enum:"vnc,spice,serial,rdp,mks"`
		Type       string `json:"type" until:"2.7" enum:"novnc,xvpvnc,spice-html5,serial,rdp-html5"`
		Type28     string `json:"type_28" name:"type" since:"2.8" until:"2.98" enum:"novnc,xvpvnc,spice-html5,serial,rdp-html5,webmks"`
		Type299    string `json:"type_299" name:"type" since:"2.99" enum:"novnc,xvpvnc,spice-html5,serial,rdp-html5,webmks,spice-direct"`
	} `json:"remote_console"`
}

func (s *server) remoteConsole(_ context.Context, r *api.Request[remoteConsole], srv *store.Server) (api.None, error) {
	in := r.Body.Console
	if protocol := cmp.Or(in.Protocol, in.Protocol28); protocol == "rdp" {
		return api.None{}, fault.New(fault.Invalid, "Unavailable console type %s.", protocol)
	}
	return api.None{}, noConsole(srv, cmp.Or(in.Type, in.Type28, in.Type299))
}

// noConsole returns the error for a console of a type that is not enabled.
func noConsole(srv *store.Server, kind string) error {
	if srv.Host == nil {
		return store.NotReady(srv.ID)
	}
	return fault.New(fault.Invalid, "Unavailable console type %s.", kind)
}

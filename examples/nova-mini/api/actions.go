package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/api"
)

// beginAction begins the operation of an action. It does not wait for the action.
func (s *server) beginAction(ctx context.Context, rule, id string, a compute.Action) (api.None, error) {
	if _, err := s.server(ctx, rule, id); err != nil {
		return api.None{}, err
	}
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	if err := s.cfg.Store.BeginAction(ctx, id, a); err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, id)
	return api.None{}, nil
}

// actionHandler returns the handler of an action without parameters.
func (s *server) actionHandler(rule string, a compute.Action) func(context.Context, *api.Request[api.None]) (api.None, error) {
	return func(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
		return s.beginAction(ctx, rule, r.PathValue("id"), a)
	}
}

type reboot struct {
	Reboot struct {
		Type string `json:"type" enum:"HARD,Hard,hard,SOFT,Soft,soft"`
	} `json:"reboot"`
}

func (s *server) reboot(ctx context.Context, r *api.Request[reboot]) (api.None, error) {
	a := compute.HardReboot
	if strings.EqualFold(r.Body.Reboot.Type, "soft") {
		a = compute.SoftReboot
	}
	return s.beginAction(ctx, ruleReboot, r.PathValue("id"), a)
}

type resize struct {
	Resize struct {
		FlavorRef  reference `json:"flavorRef"`
		DiskConfig string    `json:"OS-DCF:diskConfig,omitempty" enum:"MANUAL"`
	} `json:"resize"`
}

func (s *server) resize(ctx context.Context, r *api.Request[resize]) (api.None, error) {
	id := r.PathValue("id")
	if _, err := s.server(ctx, ruleResize, id); err != nil {
		return api.None{}, err
	}
	f, err := s.flavor(ctx, r.Body.Resize.FlavorRef)
	if err != nil {
		return api.None{}, err
	}
	if err := s.checkBus(ctx); err != nil {
		return api.None{}, err
	}
	err = s.cfg.Store.BeginResize(ctx, id, f)
	if errors.Is(err, placement.ErrNoRoom) {
		s.cfg.Logger.InfoContext(ctx, "resize refused", "server", id, "flavor", f.ID, "error", err)
		err = fault.New(fault.Invalid, "No valid host was found. No valid host found for resize")
	}
	if err != nil {
		return api.None{}, err
	}
	s.notifyConductor(ctx, id)
	return api.None{}, nil
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

// lines returns the number of lines that the client asks for. 0: all lines.
func (c *console) lines() int {
	n, err := strconv.Atoi(plainText(c.Console.Length.RawMessage))
	if err != nil { // the request has no number of lines, or a number above the largest int
		return 0
	}
	return max(n, 0) // -1 means all lines
}

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
func (s *server) console(ctx context.Context, r *api.Request[console]) (out consoleOutput, err error) {
	id := r.PathValue("id")
	srv, err := s.server(ctx, ruleConsole, id)
	if err != nil {
		return out, err
	}
	if srv.Host == nil {
		return out, fault.New(fault.Conflict, "Instance %s is not ready", id)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.ReadConsole, *srv.Host, &compute.ConsoleRequest{ServerID: id, Lines: r.Body.lines()})
	switch {
	case errors.Is(err, fault.Unimplemented):
		return out, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "Unable to get console log, functionality not implemented"))
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "console log not read", "server", id, "host", *srv.Host, "error", err)
		return out, hideDetails(err, fmt.Sprintf("Unable to get console log of instance %s.", id))
	}
	return consoleOutput{got.Output}, nil
}

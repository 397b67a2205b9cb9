package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/api"
)

// action is a body with one key, the action's name.
type action map[string]json.RawMessage

// Validate implements api.Validator.
func (a action) Validate() error {
	if len(a) != 1 {
		return fault.New(fault.Invalid, "The request body must have one action, not %d", len(a))
	}
	return nil
}

type reboot struct {
	Type string `json:"type"`
}

type console struct {
	Length json.RawMessage `json:"length"` // text or a number, as in Nova
}

func (s *server) act(ctx context.Context, r *api.Request[action]) (any, error) {
	id := r.PathValue("id")
	for name, args := range r.Body {
		switch name {
		case "os-stop":
			return s.begin(ctx, r, ruleStop, id, compute.Stop)
		case "os-start":
			return s.begin(ctx, r, ruleStart, id, compute.Start)
		case "reboot":
			var in reboot
			if err := json.Unmarshal(args, &in); err != nil {
				return nil, invalid("reboot", string(args), "it is not an object with a type")
			}
			switch strings.ToUpper(in.Type) {
			case "SOFT":
				return s.begin(ctx, r, ruleReboot, id, compute.SoftReboot)
			case "HARD":
				return s.begin(ctx, r, ruleReboot, id, compute.HardReboot)
			}
			return nil, invalid("type", in.Type, "it is neither SOFT nor HARD")
		case "resize":
			return s.resize(ctx, r, id, args)
		case "confirmResize":
			out, err := s.begin(ctx, r, ruleConfirmResize, id, compute.ConfirmResize)
			r.Status = http.StatusNoContent
			return out, err
		case "revertResize":
			return s.begin(ctx, r, ruleRevertResize, id, compute.RevertResize)
		case "os-getConsoleOutput":
			return s.console(ctx, id, args)
		default:
			return nil, fault.New(fault.Invalid, "There is no such action: %s", name)
		}
	}
	return nil, nil //nolint:nilnil // Validate has seen that there is one
}

// begin notes that an action is wanted, which is done by and by.
func (s *server) begin(ctx context.Context, r *api.Request[action], rule, id string, a compute.Action) (any, error) {
	if _, err := s.server(ctx, rule, id); err != nil {
		return nil, err
	}
	if err := s.able(ctx); err != nil {
		return nil, err
	}
	if err := s.cfg.Store.Act(ctx, id, a); err != nil {
		return nil, err
	}
	s.wake(ctx, id)
	r.Status = http.StatusAccepted
	return api.None{}, nil
}

func (s *server) resize(ctx context.Context, r *api.Request[action], id string, args json.RawMessage) (any, error) {
	var in struct {
		FlavorRef flavorRef `json:"flavorRef"`
	}
	if err := json.Unmarshal(args, &in); err != nil {
		return nil, invalid("resize", string(args), "it is not an object with a flavorRef")
	}
	if len(in.FlavorRef) == 0 {
		return nil, api.Missing("flavorRef")
	}
	if _, err := s.server(ctx, ruleResize, id); err != nil {
		return nil, err
	}
	f, err := s.flavor(ctx, in.FlavorRef)
	if err != nil {
		return nil, err
	}
	if err := s.able(ctx); err != nil {
		return nil, err
	}
	if err := s.cfg.Store.BeginResize(ctx, id, f); err != nil {
		return nil, err
	}
	s.wake(ctx, id)
	r.Status = http.StatusAccepted
	return api.None{}, nil
}

// console asks the server's host for its console log.
func (s *server) console(ctx context.Context, id string, args json.RawMessage) (any, error) {
	var in console
	if err := json.Unmarshal(args, &in); err != nil && string(args) != "null" {
		return nil, invalid("os-getConsoleOutput", string(args), "it is not an object")
	}
	lines := 0
	if text := strings.Trim(string(in.Length), `"`); text != "" && text != "null" {
		n, err := strconv.Atoi(text)
		if err != nil || n < -1 {
			return nil, invalid("length", text, "it is not a number of lines")
		}
		lines = max(n, 0) // -1 is all
	}
	srv, err := s.server(ctx, ruleConsole, id)
	if err != nil {
		return nil, err
	}
	if srv.Host == nil {
		return nil, fault.New(fault.Conflict, "Instance %s is not ready", id)
	}
	got, err := rpc.Call(ctx, s.cfg.Client, compute.ReadConsole, *srv.Host, &compute.ConsoleRequest{ServerID: id, Lines: lines})
	switch {
	case errors.Is(err, fault.Unimplemented):
		return nil, api.WithStatus(http.StatusNotImplemented, fault.New(fault.Unimplemented, "Unable to get console log, functionality not implemented"))
	case err != nil:
		return nil, err
	}
	return map[string]string{"output": got.Output}, nil
}

package conductor

import (
	"context"
	"errors"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// ReportPower stores the power states of guests, and stops servers whose guests have stopped by themselves, see compute.ReportPower.
func (s *Service) ReportPower(ctx context.Context, req *compute.PowerReport) (*compute.PowerReply, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	seen := make(map[string]compute.GuestPower, len(req.Guests))
	ids := make([]string, 0, len(req.Guests))
	for _, g := range req.Guests {
		if !store.ValidPower(g.Power) { // a faulty driver must not hide the other guests of the host
			s.cfg.Logger.WarnContext(ctx, "power state of guest is not known, treated as no state", "server", g.ServerID, "host", req.Host, "power_state", int(g.Power))
			g.Power = compute.NoState
		}
		seen[g.ServerID], ids = g, append(ids, g.ServerID)
	}
	if req.All {
		ids = nil
	}
	known, err := s.cfg.Store.Guests(ctx, req.Host, ids)
	if err != nil {
		return nil, err
	}
	out := new(compute.PowerReply)
	for id, guest := range known {
		is, reported := seen[id] // a guest that the host does not have is in NoState
		switch {
		case guest.Busy && !reported, guest.Agrees(is.Power):
		case guest.Busy:
			out.Later = append(out.Later, id)
		case is.Version == "":
			out.Differ = append(out.Differ, compute.GuestVersion{ServerID: id, Version: guest.Version()})
		default:
			stale, setErr := s.setPower(ctx, req, is, guest)
			if stale {
				out.Later = append(out.Later, id)
			}
			err = errors.Join(err, setErr)
		}
	}
	return out, err
}

// setPower stores the power state of one guest.
func (s *Service) setPower(ctx context.Context, req *compute.PowerReport, is compute.GuestPower, was *store.Guest) (stale bool, err error) {
	rule, stale, err := s.cfg.Store.SetPower(ctx, store.SeenPower{ServerID: is.ServerID, Host: req.Host, Instance: req.Instance, Version: is.Version, Power: is.Power})
	if err != nil || stale {
		return stale, err
	}
	log := s.cfg.Logger.With("server", is.ServerID, "host", req.Host, "vm_state", was.VMState, "power_state", is.Power.String(), "stored_power_state", was.Power.String())
	switch rule {
	case store.PowerStops, store.PowerForce:
		log.WarnContext(ctx, "power state of guest does not fit its server, stopping server")
		s.Runner.NotifyResource(is.ServerID)
	case store.PowerOdd:
		log.WarnContext(ctx, "power state of guest does not fit its server")
	default:
		log.InfoContext(ctx, "power state of guest changed outside of an action")
	}
	return false, nil
}

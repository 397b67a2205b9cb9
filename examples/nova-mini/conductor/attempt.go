package conductor

import (
	"context"
	"errors"
	"hash/fnv"
	"math"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
)

// Workers of releases before 1.4 of the interface compute name a step by its server, its task, and the generation of the request that
// they got. The functions here find the token for it.

// generationOf makes the generation of a request of its token.
func generationOf(token string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(token)) // it does not fail
	return int64(h.Sum64() & math.MaxInt64)
}

// tokenOf returns the token of an attempt. ErrStale: it is not the server's current one.
func (s *Service) tokenOf(ctx context.Context, a *compute.AttemptRequest) (string, error) {
	op, err := s.cfg.Store.Operations().Current(ctx, a.ServerID)
	switch {
	case errors.Is(err, fault.NotFound):
		return "", compute.ErrStale
	case err != nil:
		return "", err
	case generationOf(op.Token) == a.Generation:
		return op.Token, nil
	case a.Generation != 0 || op.Kind != store.Delete.Name:
		return "", compute.ErrStale
	}
	// The deletion on this host in whatever generation.
	srv, err := s.cfg.Store.Server(ctx, a.ServerID)
	if err == nil && (srv.Host == nil || *srv.Host != a.Host) {
		err = compute.ErrStale
	}
	return op.Token, err
}

func (s *Service) beginAttempt(ctx context.Context, req *compute.AttemptRequest) (*rpc.None, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	token, err := s.tokenOf(ctx, req)
	if err != nil {
		return nil, err
	}
	return s.BeginStep(ctx, &compute.StepRequest{Token: token, Host: req.Host, Instance: req.Instance})
}

func (s *Service) endAttempt(ctx context.Context, req *compute.EndBuildRequest) (*rpc.None, error) {
	if err := s.cfg.Store.HoldsHost(ctx, req.Host, req.Instance); err != nil {
		return nil, err
	}
	token, err := s.tokenOf(ctx, &req.AttemptRequest)
	if err != nil {
		return nil, err
	}
	return s.EndStep(ctx, &compute.EndStepRequest{StepRequest: compute.StepRequest{Token: token, Host: req.Host, Instance: req.Instance}, Error: req.Error})
}

func (s *Service) endDestroyAttempt(ctx context.Context, req *compute.AttemptRequest) (*rpc.None, error) {
	return s.endAttempt(ctx, &compute.EndBuildRequest{AttemptRequest: *req})
}

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

// Compute services before version 1.4 of the interface compute identify a step by the server, the task and the generation of
// the request, not by a token. The functions in this file find the token of such a step.

// generationOf returns the generation of a request for compute services of earlier releases: a hash of the request's token.
func generationOf(token string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(token)) // a hash does not fail
	return int64(h.Sum64() & math.MaxInt64)
}

// tokenOf returns the token of an attempt. Errors: ErrStale if the attempt is not the server's current one.
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
	// For a deletion, generation 0 stands for any attempt on the host.
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

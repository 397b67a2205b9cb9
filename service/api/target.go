package api

import (
	"context"
	"net/http"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Target says how a route finds the object of a request, such as the volume that the path names, and which values of the object the
// policy gets. Load is required.
type Target[T any] struct {
	// Load returns the object. If Load fails, the reply has its error, such as NotFound with the component's text. Load is called after
	// the body was validated.
	Load func(ctx context.Context, r *http.Request) (T, error)
	// Policy returns the target for the route's Rule, such as the object's project_id and user_id. Nil: the Rule does not depend on the
	// object, and is enforced before Load, see [Route].Rule.
	Policy func(obj T) map[string]any
	// Missing returns the error for an object that the client must not know of. It must have the same text as the error of Load for an
	// object that does not exist, so that a client cannot distinguish the two. It is required with Policy.
	Missing func(r *http.Request) error
}

// HandleTarget registers a typed handler that gets an object, see [HandleRoute]. If the Target has a Policy, the route's Rule is enforced
// after the object was loaded, with the target that Policy returns. If the rule denies the request, the reply depends on the project_id
// in this target:
//
//   - It is another project than the client's: the error is that of Missing, with status 404, so that the client does not learn that the
//     object exists.
//   - It is the client's project, or the target has no project_id: the error is that of the policy, with status 403.
//
// HandleTarget panics as HandleRoute does. It also panics if a part of the Target is missing or has no effect.
func HandleTarget[B, R, T any](to Router, def Route, target Target[T], h func(ctx context.Context, r *Request[B], obj T) (R, error)) {
	m, def := to.expand(def)
	if problem := target.problem(def); problem != "" {
		panic("api: " + def.Pattern + ": Target: " + problem + " (registered at " + callerLine() + ")")
	}
	handleRoute(m, def, target.Policy != nil, func(r *http.Request) (T, error) { return target.find(r.Context(), m, def.Rule, r) }, h)
}

// problem returns an error text if a part of the Target is missing or has no effect, or "".
func (t *Target[T]) problem(def Route) string {
	switch {
	case t.Load == nil:
		return "Load is required"
	case t.Policy == nil && t.Missing != nil:
		return "Missing has no effect without a Policy"
	case t.Policy != nil && t.Missing == nil:
		return "Missing is required with a Policy, for objects of other projects"
	case t.Policy != nil && def.Rule == "":
		return "Policy has no effect without a Rule of the route"
	}
	return ""
}

// find returns the object of a request. It returns an error if the policy denies the request.
func (t *Target[T]) find(ctx context.Context, m *Mux, rule string, r *http.Request) (obj T, err error) {
	if obj, err = t.Load(ctx, r); err != nil || t.Policy == nil {
		return obj, err
	}
	target := t.Policy(obj)
	if target == nil { // for the policy, a nil target means an object of the client's own
		target = map[string]any{}
	}
	err = m.cfg.Enforce(ctx, rule, target)
	if err == nil {
		return obj, nil
	}
	var none T
	if owner, ok := target["project_id"]; ok && owner != reqctx.From(ctx).ProjectID && statusOf(err) < statusClientGone {
		err = t.Missing(r)
		if statusOf(err) != http.StatusNotFound {
			err = fault.New(fault.NotFound, "The resource could not be found.")
		}
	}
	return none, err
}

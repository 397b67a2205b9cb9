package api

import (
	"context"
	"net/http"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// Target says how a route finds the object of a request, such as the volume that its path names, and what the policy sees of it. Load is
// required.
type Target[T any] struct {
	// Load returns the object. Its error is that of the reply, such as NotFound with the component's text. It is called when the body
	// is valid.
	Load func(ctx context.Context, r *http.Request) (T, error)
	// Policy returns the target of the route's Rule, such as the object's project_id and user_id. Nil: the Rule does not depend on
	// the object, and is enforced before Load, as [Route].Rule says.
	Policy func(obj T) map[string]any
	// Missing is the error for an object that does not exist for the client. It must have the text with which Load fails, so that a
	// client cannot tell the two apart. It is required with Policy.
	Missing func(r *http.Request) error
}

// HandleTarget registers a typed handler that gets an object, see [HandleRoute]. If the Target has a Policy, the route's Rule is enforced
// with it when the object is loaded. If the rule denies the request, the reply depends on the object's project_id in the Policy:
//
//   - The object belongs to another project than the client: the error is Missing, with status 404, so that the client does not learn that the
//     object exists.
//   - The object belongs to the client's project, or the Policy has no project_id: the error is that of the policy, with status 403.
//
// HandleTarget panics as HandleRoute does, and if a part of the Target is missing or has no effect.
func HandleTarget[B, R, T any](to Router, def Route, target Target[T], h func(ctx context.Context, r *Request[B], obj T) (R, error)) {
	m, def := to.expand(def)
	if problem := target.problem(def); problem != "" {
		panic("api: " + def.Pattern + ": Target: " + problem + " (registered at " + callerLine() + ")")
	}
	handleRoute(m, def, target.Policy != nil, func(r *http.Request) (T, error) { return target.find(r.Context(), m, def.Rule, r) }, h)
}

// problem returns an error text if a part is missing or has no effect, or "".
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

// find returns the object of a request if the policy allows the request.
func (t *Target[T]) find(ctx context.Context, m *Mux, rule string, r *http.Request) (obj T, err error) {
	if obj, err = t.Load(ctx, r); err != nil || t.Policy == nil {
		return obj, err
	}
	target := t.Policy(obj)
	if target == nil { // for the policy, nil is an object of the client's own
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

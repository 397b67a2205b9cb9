package driver

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
)

// The keys of the metadata, see driver.proto.
const (
	requestKey = "armature-request-bin"
	faultKey   = "armature-fault-bin"
)

// maxMessage is the maximum length of an error's text, in bytes. A longer text is cut, because gRPC libraries refuse
// headers of more than 8 KiB by default.
const maxMessage = 4 << 10

// toGRPC has gRPC's code for each fault code.
var toGRPC = [...]codes.Code{
	fault.Internal:        codes.Internal,
	fault.Invalid:         codes.InvalidArgument,
	fault.Unauthenticated: codes.Unauthenticated,
	fault.Denied:          codes.PermissionDenied,
	fault.NotFound:        codes.NotFound,
	fault.Conflict:        codes.Aborted,
	fault.Precondition:    codes.FailedPrecondition,
	fault.Exhausted:       codes.ResourceExhausted,
	fault.Unimplemented:   codes.Unimplemented,
	fault.Unavailable:     codes.Unavailable,
	fault.Timeout:         codes.DeadlineExceeded,
	fault.Unknown:         codes.Unknown,
	fault.Canceled:        codes.Canceled,
}

// fromGRPC has the fault code of an error without armature-fault-bin, by gRPC's code. All other codes are
// Internal, except Unavailable and Canceled, which outcome.err handles.
var fromGRPC = map[codes.Code]fault.Code{
	codes.InvalidArgument:    fault.Invalid,
	codes.OutOfRange:         fault.Invalid,
	codes.DeadlineExceeded:   fault.Timeout,
	codes.NotFound:           fault.NotFound,
	codes.AlreadyExists:      fault.Conflict,
	codes.Aborted:            fault.Conflict,
	codes.PermissionDenied:   fault.Denied,
	codes.Unauthenticated:    fault.Unauthenticated,
	codes.ResourceExhausted:  fault.Exhausted,
	codes.FailedPrecondition: fault.Precondition,
	codes.Unimplemented:      fault.Unimplemented,
}

// outcome has the facts about a call that gRPC reports besides the status.
type outcome struct {
	peer    peer.Peer // empty: the call never reached a connection
	trailer metadata.MD
}

// options returns opts with the options that fill o.
func (o *outcome) options(opts []grpc.CallOption) []grpc.CallOption {
	all := make([]grpc.CallOption, 0, len(opts)+2)
	return append(append(all, opts...), grpc.Peer(&o.peer), grpc.Trailer(&o.trailer))
}

// err returns the error of a call to the named driver with a fault code.
func (o *outcome) err(ctx context.Context, name, method string, err error) error {
	if v := o.trailer.Get(faultKey); len(v) > 0 {
		f := fault.Error{}
		if json.Unmarshal([]byte(v[0]), &f) == nil && (f.Code != fault.Timeout && f.Code != fault.Canceled || deadlineOver(ctx) == nil) {
			f.Msg = status.Convert(err).Message()
			return fault.Remote(f)
		}
	}
	if ended := deadlineOver(ctx); ended != nil {
		return fault.New(fault.CodeOf(ended), "driver %s: %s: %w", name, shortMethod(method), ended)
	}
	s := status.Convert(err)
	if s.Code() != codes.Unavailable && s.Code() != codes.Canceled { // a lost connection also has these codes
		return fault.Remote(fault.Error{Code: fromGRPC[s.Code()], Msg: s.Message()})
	}
	if o.peer.Addr == nil {
		return fault.New(fault.Unavailable, "driver %s: its program accepts no calls: %s", name, s.Message())
	}
	return fault.New(fault.Unknown, "driver %s: its program was lost during %s: %s", name, shortMethod(method), s.Message())
}

// deadlineOver returns the reason if ctx has ended, or ends within slack. gRPC and the driver watch the deadline with timers of
// their own, so the driver may report a passed deadline a little before ctx ends.
func deadlineOver(ctx context.Context) error {
	if d, ok := ctx.Deadline(); ok && ctx.Err() == nil && time.Until(d) < slack {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// slack is the assumed maximum difference between these timers.
const slack = 10 * time.Millisecond

// shortMethod returns the last part of a method's name.
func shortMethod(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }

// toStatus returns the error of a driver's method as a gRPC status. It sets the trailer that has the rest of the fault.
func toStatus(err error, setTrailer func(metadata.MD)) error {
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unavailable {
		return err // the driver has returned a gRPC status
	}
	f := *fault.From(err)
	msg := strings.ToValidUTF8(f.Error(), "\uFFFD")
	if len(msg) > maxMessage {
		msg = strings.ToValidUTF8(msg[:maxMessage], "") + " (cut)"
	}
	f.Msg = "" // the status has the text
	if raw, err := json.Marshal(f); err == nil && len(raw) <= maxMessage {
		setTrailer(metadata.Pairs(faultKey, string(raw)))
	}
	code := codes.Internal
	if int(f.Code) < len(toGRPC) {
		code = toGRPC[f.Code]
	}
	return status.Error(code, msg)
}

// outgoingContext puts the request of package reqctx into a call's metadata. Programs that were built with an older
// driver.proto read the id and the global id by older names, so both are also written under these names.
func outgoingContext(ctx context.Context) context.Context {
	r := reqctx.From(ctx)
	if r.IsZero() {
		return ctx
	}
	raw, err := json.Marshal(struct {
		reqctx.Request
		OldID       string `json:"id,omitempty"`
		OldGlobalID string `json:"global_id,omitempty"`
	}{r, r.ID, r.GlobalID})
	if err != nil {
		return ctx // not reached: a struct of strings can always be encoded
	}
	return metadata.AppendToOutgoingContext(ctx, requestKey, string(raw))
}

// incomingContext puts the request in a call's metadata into the context. A request that cannot be
// parsed is ignored.
func incomingContext(ctx context.Context) context.Context {
	v := metadata.ValueFromIncomingContext(ctx, requestKey)
	if len(v) == 0 {
		return ctx
	}
	var r reqctx.Request
	if r.UnmarshalJSON([]byte(v[0])) != nil { // json.Unmarshal would scan the text twice more
		return ctx
	}
	return reqctx.With(ctx, r)
}

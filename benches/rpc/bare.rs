//! The floor of gRPC in Rust: tonic with the transport and the runtime of kube-kms, and no work.
//!
//! One thread; hyper's HTTP/2 drives tonic's unary call, without `Server` and its router; sockets that deny vectored writes
//! (h2 would flush each larger DATA frame by itself); codec buffers of 1 KiB. The system's allocator, which does not wipe.
//! Status and Encrypt answer what the template says; nothing is sealed, logged, counted or checked.

use super::message::{ENCRYPT, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::codec::{BufferSettings, Codec};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// Serves until it is killed.
pub fn serve(socket: &Path, template: EncryptResponse) -> io::Result<()> {
    let template = Arc::new(template);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let listener = UnixListener::bind(socket)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let template = Arc::clone(&template);
            let service = hyper::service::service_fn(move |request| answer(Arc::clone(&template), request));
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(Gathered(stream)), service);
            tokio::spawn(connection);
        }
    })
}

type Answer = http::Response<tonic::body::Body>;

async fn answer(template: Arc<EncryptResponse>, request: http::Request<Incoming>) -> Result<Answer, Infallible> {
    Ok(if request.uri().path() == ENCRYPT {
        Grpc::new(Small::default()).unary(Encrypt(template), request).await
    } else {
        Grpc::new(Small::default()).unary(Health(template), request).await
    })
}

struct Encrypt(Arc<EncryptResponse>);

impl UnaryService<EncryptRequest> for Encrypt {
    type Response = EncryptResponse;
    type Future = std::future::Ready<Result<Response<EncryptResponse>, Status>>;

    fn call(&mut self, request: Request<EncryptRequest>) -> Self::Future {
        std::hint::black_box(request);
        std::future::ready(Ok(Response::new((*self.0).clone())))
    }
}

struct Health(Arc<EncryptResponse>);

impl UnaryService<StatusRequest> for Health {
    type Response = StatusResponse;
    type Future = std::future::Ready<Result<Response<StatusResponse>, Status>>;

    fn call(&mut self, _: Request<StatusRequest>) -> Self::Future {
        let (version, healthz, key_id) = ("v2".to_owned(), "ok".to_owned(), self.0.key_id.clone());
        std::future::ready(Ok(Response::new(StatusResponse { version, healthz, key_id })))
    }
}

/// Writes as one piece what h2 would otherwise write as several.
struct Gathered(UnixStream);

impl AsyncRead for Gathered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// tonic's codec, with buffers of the size of these messages.
struct Small<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Small<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for Small<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(1024, 32 * 1024))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(1024, 32 * 1024))
    }
}
